"""One round on one device, on eight, on weights that are spread, and on two processes: the same round."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from tests import play_round


def start(out, *arguments, devices=1):
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    command = [sys.executable, "-m", "tests.play_round", str(out), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process, out):
    log = process.communicate(timeout=120)[0].decode()
    assert process.returncode == 0, log
    return dict(np.load(out))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "round.npz"
    play_round.main(str(out), "cohort__chunk=1")
    return dict(np.load(out))


def assert_same(result, alone, votes=2e-3):
    assert np.mean(result["theta"] != alone["theta"]) <= votes
    assert result["loss"] == pytest.approx(float(alone["loss"]), rel=1e-4)
    assert result["flip_rate"] == pytest.approx(float(alone["flip_rate"]), rel=0.02)


@pytest.mark.parametrize("shards, chunk, tokens", [(1, 1, "devices"), (2, 2, "devices"), (1, 1, "host")])
def test_eight_devices_give_the_round_of_one(tmp_path, alone, shards, chunk, tokens):
    out = tmp_path / "round.npz"
    settings = f"cohort__weight_shards={shards}", f"cohort__chunk={chunk}", f"tokens={tokens}"
    result = finish(start(out, *settings, devices=8), out)
    assert result["devices"] == 8
    assert (alone["theta"] != alone["theta"][0]).any()
    assert_same(result, alone)  # a vote may differ where a logit rounds across its uniform
    np.testing.assert_array_equal(result["correct"], alone["correct"])
    for name in ("tokens", "features"):
        np.testing.assert_allclose(result[name], alone[name], rtol=0, atol=0 if shards == 1 else 1e-5)


def test_a_private_round_on_eight_devices_is_that_of_one(tmp_path):
    settings = "method='linear_probe'", "dp__level='example'", "dp__noise_multiplier=0.5"
    play_round.main(str(tmp_path / "one.npz"), *settings)
    eight = finish(start(tmp_path / "eight.npz", *settings, devices=8), tmp_path / "eight.npz")
    one = np.load(tmp_path / "one.npz")
    np.testing.assert_allclose(eight["theta"], one["theta"], rtol=1e-3, atol=1e-4)
    assert eight["loss"] == pytest.approx(float(one["loss"]), rel=1e-4)


@pytest.mark.parametrize("tokens", ["devices", "demand"])
def test_two_processes_give_the_round_of_one(tmp_path, alone, tokens):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    outs = [tmp_path / f"round{process}.npz" for process in (0, 1)]
    settings = "cohort__chunk=1", f"tokens={tokens}"
    processes = [start(out, coordinator, 2, process, *settings) for process, out in enumerate(outs)]
    results = [finish(process, out) for process, out in zip(processes, outs, strict=True)]
    for process, result in enumerate(results):
        assert result["processes"] == 2
        assert_same(result, alone, votes=0)
        assert result["bytes"] == alone["bytes"]
        np.testing.assert_array_equal(result["payload"], alone["payload"])
        np.testing.assert_array_equal(result["correct"], alone["correct"])
        assert result["evaluated"] == 27 + process  # its share of 55 examples
        if tokens == "demand":  # those of its share of the clients
            assert len(result["computed"]) == [1 + 20, 7 + 8 + 16][process]
