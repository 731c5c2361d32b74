"""Threads: as many as there are cores to run on, at every depth of calls."""

import os
import shutil
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest

from deltamask_jax import codecs, threads
from deltamask_jax.codecs import side_info
from deltamask_jax.public_random import MASK, stream_key


@pytest.fixture
def three(monkeypatch):
    """A machine with three cores."""
    monkeypatch.setattr(threads, "count", lambda: 3)
    monkeypatch.setattr(threads, "_pools", {})


def test_a_cohort_is_encoded_on_two_threads_a_core_at_most(three, monkeypatch):
    """Four clients of four chunks each: pools inside pools would be 3 + 3 · 3 threads."""
    d, seen, bucket_chunk = 1 << 20, [], side_info._bucket_chunk
    rng, before = np.random.default_rng(0), threading.active_count()
    theta = rng.integers(0, 1 << 16, d, np.uint16)
    positions = [np.sort(rng.choice(d, 500, replace=False)).astype(np.uint32) for _ in range(4)]
    streams = [(stream_key(0, 1, client, MASK),) for client in range(4)]
    contexts = [codecs.Context(d, theta, stream, 1, client) for client, stream in enumerate(streams)]

    def watched(*arguments):
        seen.append(threading.active_count() - before)
        return bucket_chunk(*arguments)

    monkeypatch.setattr(side_info, "_bucket_chunk", watched)
    codec = side_info.side_info()
    payloads = codecs.encode_cohort(codec, positions, contexts)
    assert len(seen) == 16 and 2 <= max(seen) <= 2 * threads.count()
    for found, sent in zip(codecs.decode_cohort(codec, payloads, contexts), positions, strict=True):
        np.testing.assert_array_equal(found, sent)
    assert max(seen) <= 2 * threads.count()


@pytest.mark.parametrize("own", [None, 2])
def test_pools_nest_to_any_depth(three, own):
    def total(depth):
        if not depth:
            return 1
        with threads.pool(own) as pool:
            return sum(pool.map(total, [depth - 1] * 4))

    before = threading.active_count()
    assert total(4) == 4**4
    assert threading.active_count() - before <= 2 * threads.count()


@pytest.mark.parametrize("own", [None, 2])
def test_threads_work_on_the_callers_device(three, own):
    """jax's default device is a thread's own, and a codec's work belongs on the host (`devices.host`)."""

    def seen(depth):
        if not depth:
            return {jax.config.jax_default_device}
        with threads.pool(own) as pool:
            return set().union(*pool.map(seen, [depth - 1] * 4))

    host = jax.devices("cpu")[0]
    with jax.default_device(host):
        assert seen(3) == {host}
    assert seen(3) == {None}


def test_an_error_in_a_thread_reaches_the_caller_and_the_pool_goes_on(three):
    for expected in (ZeroDivisionError, ZeroDivisionError):
        with pytest.raises(expected), threads.pool() as pool:
            list(pool.map(lambda x: 1 / x, range(4)))


def test_a_restricted_process_has_fewer_threads(monkeypatch):
    if hasattr(os, "sched_getaffinity") and shutil.which("taskset"):
        command = [sys.executable, "-c", "from deltamask_jax import threads; print(threads.count())"]
        one = str(min(os.sched_getaffinity(0)))
        assert subprocess.check_output(["taskset", "-c", one, *command], text=True) == "1\n"
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert threads.count() == os.cpu_count()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing forks")
def test_a_forked_child_starts_its_own_threads():
    program = """if True:
        import os, signal
        from deltamask_jax import threads

        def work():
            with threads.pool() as pool:
                return list(pool.map(abs, range(-4, 0)))

        assert work() == [4, 3, 2, 1]
        child = os.fork()
        if not child:
            signal.alarm(30)
            os._exit(0 if work() == [4, 3, 2, 1] else 1)
        assert os.waitpid(child, 0)[1] == 0
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize("d", [1, threads.BLOCK, threads.BLOCK + 1, 3 * threads.BLOCK - 5])
def test_elementwise_is_the_function_of_whole_arrays(three, d):
    rng = np.random.default_rng(d)
    a, b = rng.integers(0, 99, d, np.uint16), rng.random(d, np.float32)

    def function(a, b):
        return {"sum": a + b, "larger": (a > 50, np.float32(2) * b)}

    found, expected = threads.elementwise(function, a, b), function(a, b)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert found["larger"][0].dtype == bool and found["sum"].dtype == expected["sum"].dtype


def test_elementwise_sees_no_more_than_a_block_at_once_and_says_what_failed(three):
    seen = []
    threads.elementwise(lambda a: seen.append(len(a)) or a, np.zeros(4 * threads.BLOCK + 1))
    assert max(seen) == threads.BLOCK and sum(seen) == 4 * threads.BLOCK + 1
    with pytest.raises(ZeroDivisionError):
        threads.elementwise(lambda a: a * (1 // (len(a) - 1)), np.zeros(2 * threads.BLOCK + 1))
