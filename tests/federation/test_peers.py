"""Processes that know each other: what they exchange, and how the end of one ends all."""

import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from deltamask_jax.federation import peers


def free_port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def together(count, port, patience=60):
    """All processes, as threads of this one."""
    with ThreadPoolExecutor(count) as pool:
        joining = [pool.submit(peers.join, "localhost", port, i, count, patience) for i in range(1, count)]
        first = peers.listen("localhost", port, count, patience)
        return [first, *(job.result() for job in joining)]


def test_all_hold_what_all_hold_in_their_order():
    everyone = together(3, free_port())
    mine = [[b"", b"a"], [], [bytes(5_000_000), b"z"]]
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            got = list(pool.map(lambda process, items: process.exchange(items), everyone, mine))
            assert got == [[b"", b"a", bytes(5_000_000), b"z"]] * 3
        list(pool.map(peers.Peers.leave, everyone))  # and nobody takes that for a death


def test_who_does_not_come_is_named_and_the_others_are_told():
    port, refused = free_port(), []

    def join():
        try:
            peers.join("localhost", port, 1, 3, 60)
        except OSError as error:
            refused.append(str(error))

    joining = threading.Thread(target=join)
    joining.start()
    with pytest.raises(TimeoutError, match="^process 2 of 3 did not come within 2 s: .* --patience$"):
        peers.listen("localhost", port, 3, patience=2)
    joining.join()
    assert refused == [
        "process 0 stopped: process 2 of 3 did not come within 2 s: start all, or raise --patience"
    ]
    with pytest.raises(TimeoutError, match="process 0 does not answer at localhost:.* --patience$"):
        peers.join("localhost", free_port(), 1, 2, patience=0)


@pytest.mark.parametrize(
    "index, count, message",
    [(1, 3, "--processes is 3 for process 1 and 2 for process 0"), (0, 2, "two processes .* --process=0")],
)
def test_processes_that_count_otherwise_are_refused_and_strangers_are_not_heard(index, count, message):
    port = free_port()

    def come():
        for noise in (b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\2{}", b"\0\0\0\x09{"):
            while True:
                try:
                    link = socket.create_connection(("localhost", port))
                    break
                except OSError:
                    pass
            with suppress(OSError):  # it is hung up on
                link.sendall(noise)
                link.shutdown(socket.SHUT_WR)
        with pytest.raises(OSError, match=f"process 0 stopped: {message}"):
            peers.join("localhost", port, index, count, 60)

    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(come)
        with pytest.raises(ValueError, match=message):
            peers.listen("localhost", port, 2, patience=60)
        coming.result()


@pytest.mark.parametrize(
    "said",
    [
        b"[" * 4000,  # deeper than Python follows
        b'{"hello": "deltamask_jax peers 1", "kind": "data", "process": Infinity, "processes": 2}',
    ],
)
def test_json_without_a_process_is_a_strangers(said):
    ours, theirs = socket.socketpair()
    with theirs, peers.Connection(ours.detach()) as connection:
        theirs.sendall(struct.pack("!i", len(said)) + said)
        assert peers._hello(connection) is None


def test_a_taken_port_is_named():
    with socket.create_server(("", free_port())) as server:
        port = server.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot listen at port {port}: Address already in use; choose"):
            peers.listen("localhost", port, 2, patience=1)


PROCESS = """
import os, sys
from deltamask_jax.federation import peers
port, index, victim, what = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if what == "freeze":
    peers.BEAT, peers.SILENCE = 0.1, 20
me = (peers.join if index else peers.listen)("localhost", port, *([index] if index else []), 3, 60)
me.before_exit = lambda: "saved"
me.exchange([])
print("met", flush=True)
if index == victim and what == "leave":
    sys.stdin.readline()
    me.leave("the disk is full")
    sys.exit(1)
me.exchange([]) if index != victim else sys.stdin.read()  # the others wait for the victim
"""


@pytest.mark.parametrize(
    "what, victim, line",
    [
        ("kill", 0, "process 0 died"),
        ("kill", 2, "process 2 died"),
        ("leave", 0, "process 0 stopped: the disk is full"),
        ("leave", 1, "process 1 stopped: the disk is full"),
        ("freeze", 2, "process 2 was silent for 2 s"),
    ],
)
def test_the_end_of_one_is_the_end_of_all_with_one_line_that_names_it(what, victim, line):
    port = free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, str(port), str(index), str(victim), what],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(3)
    ]
    try:
        assert [process.stdout.readline() for process in processes] == ["met\n"] * 3
        if what == "leave":
            print(file=processes[victim].stdin, flush=True)
        else:
            processes[victim].send_signal(signal.SIGKILL if what == "kill" else signal.SIGSTOP)
        for index, process in enumerate(processes):
            if index != victim:
                assert process.wait(60) == 1
                assert process.stderr.read().strip() == f"error: {line}; saved"
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def test_a_stranger_that_drips_is_hung_up_on(monkeypatch):
    monkeypatch.setattr(peers, "_STRANGERS_SECONDS", 0.5)
    ours, theirs = socket.socketpair()

    def drip():
        with suppress(OSError):
            while True:
                theirs.send(b"\0")
                time.sleep(0.1)

    threading.Thread(target=drip, daemon=True).start()
    began = time.monotonic()
    assert peers._hello(peers.Connection(ours.detach())) is None
    assert time.monotonic() - began < 5
    theirs.close()
