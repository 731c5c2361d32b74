"""Processes that know each other: bytes between them, and the end of all where one ends.

Process 0 listens. Every other process holds two TCP connections to it. One carries what they exchange. On
the other both say every second that they live, why they stop, or that they are done. A process that dies
closes its connections; one that is frozen, or whose host is gone, falls silent.

jax's own distributed runtime is not used: arrays never span processes, its collectives give up on whoever
comes 30 s later, and it aborts a process whose peer died before that process could say so.
"""

import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import cast

import numpy as np

BEAT = 1.0  # seconds between two signs of life
SILENCE = 60  # beats without one from a process, after which it counts as dead
LINGER = 5.0  # seconds in which the others may read why this process stops
_HELLO = "deltamask_jax peers 1"
_DONE = b"done"
_KINDS = ("data", "life")
_STRANGERS_SECONDS, _LONGEST_HELLO = 5.0, 1 << 12


class Peers:
    """The other processes, seen from this one.

    Attributes:
        index, count: which process this is, and how many there are.
        before_exit: called before another process ends this one; returns what to tell the user.
    """

    def __init__(self, index: int, count: int, data: dict[int, Connection], life: dict[int, Connection]):
        self.index, self.count = index, count
        self.before_exit: Callable[[], str] = lambda: "the same commands try again"
        self._data, self._life = data, life
        self._leaving = threading.Event()
        self._sending = threading.Lock()
        self._watcher = threading.Thread(target=self._watch, name="peers", daemon=True)
        self._watcher.start()

    def exchange(self, items: list[bytes]) -> list[bytes]:
        """What all processes hold, in their order; all must call this together."""
        try:
            if self.index == 0:
                for process in sorted(self._data):
                    items = items + _unpack(self._data[process].recv_bytes())
                everything = _pack(items)
                for connection in self._data.values():
                    connection.send_bytes(everything)
                return items
            self._data[0].send_bytes(_pack(items))
            return _unpack(self._data[0].recv_bytes())
        except (EOFError, OSError):  # the watcher knows why, and ends this process
            self._leaving.wait(2 * SILENCE * BEAT)
            raise OSError("the connection to another process broke") from None

    def leave(self, reason: str = "") -> None:
        """Say goodbye, or why all must stop; the others have some seconds to hear it."""
        if self._leaving.is_set():
            return
        self._leaving.set()
        self._tell(f"process {self.index} stopped: {reason}".encode() if reason else _DONE)
        self._watcher.join(LINGER)

    def _tell(self, message: bytes) -> None:
        with self._sending:
            for connection in self._life.values():
                try:
                    connection.send_bytes(message)
                except OSError:  # it has gone, which the watcher notices
                    pass

    def _watch(self) -> None:
        waiting = {connection: process for process, connection in self._life.items()}
        silent = dict.fromkeys(self._life, 0)  # beats of this process: one that is frozen itself counts none
        beaten = time.monotonic()
        while waiting:
            for connection in cast(list[Connection], wait(list(waiting), BEAT)):
                process = waiting[connection]
                try:
                    message = connection.recv_bytes(1 << 16)
                except (EOFError, OSError):
                    message = f"process {process} died".encode()
                silent[process] = 0
                if message:
                    del waiting[connection]
                    if message != _DONE and not self._leaving.is_set():
                        self._end(message.decode(errors="replace"))
            if time.monotonic() - beaten >= BEAT:
                beaten = time.monotonic()
                if not self._leaving.is_set():
                    self._tell(b"")
                for process in waiting.values():
                    silent[process] += 1
                    if silent[process] > SILENCE and not self._leaving.is_set():
                        self._end(f"process {process} was silent for {SILENCE * BEAT:.0f} s")

    def _end(self, reason: str) -> None:
        self._tell(reason.encode())
        try:
            print(f"\nerror: {reason}; {self.before_exit()}", file=sys.stderr, flush=True)
        finally:
            os._exit(1)


def listen(host: str, port: int, count: int, patience: float) -> Peers:
    """Process 0: wait for the others.

    Args:
        host: its name to the others, which says by what kind of addresses they come.

    Raises:
        OSError: the port is taken, or a process did not come within `patience` seconds.
        ValueError: two say that they are the same process, or one counts other processes.
    """
    found: dict[tuple[int, str], Connection] = {}
    everyone, links = range(1, count), []
    deadline = time.monotonic() + patience
    try:
        with _server(host, port) as server:
            while len(found) < 2 * len(everyone):
                server.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection = _connection(server.accept()[0])
                except TimeoutError:
                    missing = sorted({i for i in everyone for kind in _KINDS if (i, kind) not in found})
                    raise TimeoutError(
                        f"process {', '.join(map(str, missing))} of {count} did not come within "
                        f"{patience:g} s: start all, or raise --patience"
                    ) from None
                hello = _hello(connection)
                if hello is None:  # a stranger, a port scanner for example
                    connection.close()
                    continue
                links.append(connection)
                process, theirs, kind = hello
                if theirs != count:
                    raise ValueError(
                        f"--processes is {theirs} for process {process} and {count} for process 0: give all "
                        "the same"
                    )
                if process not in everyone or (process, kind) in found:
                    raise ValueError(f"two processes were started with --process={process}")
                found[process, kind] = connection
    except (ValueError, OSError) as error:
        for connection in links:
            _send(connection, {"error": str(error)})
        raise
    for connection in links:
        _send(connection, {"error": ""})
    return Peers(0, count, *({i: found[i, kind] for i in everyone} for kind in _KINDS))


def _server(host: str, port: int) -> socket.socket:
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"--coordinator={host}:{port}: no such host: {error.strerror}") from None
    for family in dict.fromkeys(family for family, *_ in addresses):
        try:
            return socket.create_server(("", port), family=family)
        except OSError as error:
            reason = error
    why = os.strerror(reason.errno or 0)
    raise OSError(f"cannot listen at port {port}: {why}; choose another in --coordinator")


def join(host: str, port: int, index: int, count: int, patience: float) -> Peers:
    """Any other process: find process 0.

    Raises:
        OSError: it does not answer within `patience` seconds, or has refused.
    """
    connections, deadline = [], time.monotonic() + patience
    for kind in _KINDS:
        while True:
            try:
                connection = _connection(socket.create_connection((host, port), timeout=10))
                break
            except OSError as error:
                if connections and connections[0].poll():  # it has refused, and listens no more
                    break
                if time.monotonic() > deadline:
                    raise TimeoutError(
                        f"process 0 does not answer at {host}:{port} within {patience:g} s ({error}): start "
                        "it, or raise --patience"
                    ) from None
                time.sleep(0.2)
        if connections and connections[0].poll():
            break
        _send(connection, {"hello": _HELLO, "process": index, "processes": count, "kind": kind})
        connections.append(connection)
    for connection in connections:
        try:
            if not connection.poll(2 * patience):  # its own patience may have begun later
                raise TimeoutError(f"process 0 at {host}:{port} is silent")
            refused = json.loads(connection.recv_bytes(1 << 16))["error"]
        except (EOFError, ConnectionError, ValueError, KeyError):
            raise OSError(f"process 0 at {host}:{port} went away before all had come") from None
        if refused:
            raise OSError(f"process 0 stopped: {refused}")
    data, life = connections
    return Peers(index, count, {0: data}, {0: life})


def _connection(link: socket.socket) -> Connection:
    link.settimeout(None)
    link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Connection(link.detach())


def _send(connection: Connection, message: dict) -> None:
    try:
        connection.send_bytes(json.dumps(message).encode())
    except OSError:  # it has gone; what it misses it no longer needs
        pass


def _hello(connection: Connection) -> tuple[int, int, str] | None:
    """Process, processes and kind of a connection, or None of a stranger's."""
    try:
        said = json.loads(_first_message(connection))
        if said["hello"] != _HELLO or said["kind"] not in _KINDS:
            return None
        return int(said["process"]), int(said["processes"]), said["kind"]
    except (EOFError, OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _first_message(connection: Connection) -> bytes:
    """What comes within 5 s, and is whole by then, however slowly a stranger sends.

    Raises:
        EOFError, OSError: nothing, or too long a message.
    """
    until = time.monotonic() + _STRANGERS_SECONDS
    with socket.socket(fileno=os.dup(connection.fileno())) as link:

        def read(size: int) -> bytes:
            got = b""
            while len(got) < size:
                left = until - time.monotonic()
                if left <= 0:
                    raise TimeoutError("no whole message came")
                timeout = struct.pack("ll", int(left), min(int(left % 1 * 1e6) + 1, 999_999))
                link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeout)
                part = link.recv(size - len(got))
                if not part:
                    raise EOFError
                got += part
            return got

        (size,) = struct.unpack("!i", read(4))  # as `Connection.send_bytes` writes it
        if not 0 <= size <= _LONGEST_HELLO:
            raise OSError("too long a message")
        message = read(size)
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 0))  # for ever
    return message


def _pack(items: list[bytes]) -> bytes:
    lengths = np.array([len(items), *map(len, items)], "<u8")
    return b"".join([lengths.tobytes(), *items])


def _unpack(blob: bytes) -> list[bytes]:
    count = int(np.frombuffer(blob, "<u8", 1)[0])
    lengths = np.frombuffer(blob, "<u8", count, offset=8)
    ends = 8 * (1 + count) + np.cumsum(lengths, dtype=np.int64)
    return [blob[end - size : end] for size, end in zip(lengths.astype(int), ends, strict=True)]
