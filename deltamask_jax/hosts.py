"""Several hosts: each process trains a share of every cohort, then all exchange what the clients sent.

Every process runs the same program on the same config: it holds the same server state, computes the same
broadcast, and after the exchange decodes the same payloads in the same order. So the state needs no
synchronising, and a run on many processes is the run of one. Each host reads the data set itself.

    host 0:  python -m deltamask_jax.main --config=… --coordinator=host0:9999 --processes=2 --process=0
    host 1:  python -m deltamask_jax.main --config=… --coordinator=host0:9999 --processes=2 --process=1
"""

from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils


def start(coordinator: str, processes: int | None, process: int | None) -> None:
    """Join the other processes; before anything else touches a device.

    Args:
        coordinator: 'host:port' of process 0; 'auto' where jax knows its cluster (TPU pods, Slurm, Open MPI,
            Kubernetes); '' = this process is alone.
        processes, process: how many there are, and which this is, from 0. Not needed with 'auto'.

    Raises:
        ValueError: `processes` or `process` is missing or makes no sense.
        RuntimeError: the others did not come.
    """
    if not coordinator and (processes, process) != (None, None) and processes != 1:
        raise ValueError(
            "--processes and --process need --coordinator=HOST:PORT of process 0 (or --coordinator=auto): "
            "without it this process would run alone"
        )
    if coordinator == "auto":
        jax.distributed.initialize()
    elif coordinator:
        if processes is None or process is None or not 0 <= process < processes:
            raise ValueError("--coordinator=HOST:PORT needs --processes=N and --process=I with 0 ≤ I < N")
        jax.distributed.initialize(coordinator, processes, process)


def workdir(path: str | Path) -> Path:
    """Where this process writes: process 0 the run itself, each other the same results again beside it."""
    path, process = Path(path), jax.process_index()
    return path.with_name(f"{path.name}.process{process}") if process else path


def share(clients: int) -> slice:
    """Rows of the cohort that this process trains.

    Raises:
        ValueError: fewer clients than processes.
    """
    if clients < jax.process_count():
        raise ValueError(
            f"a cohort of {clients} cannot be divided over {jax.process_count()} processes: raise "
            "config.participation or config.clients, or start fewer processes"
        )
    return block(clients)


def block(rows: int) -> slice:
    """Which of so many rows are this process's: one block a process, sizes one apart at most."""
    processes, process = jax.process_count(), jax.process_index()
    return slice(process * rows // processes, (process + 1) * rows // processes)


def exchange(items: list[bytes]) -> list[bytes]:
    """What every process holds, in the order of the processes; all must call this together.

    Args:
        items: this process's, each below 2 GiB.
    """
    if jax.process_count() == 1:
        return items
    counts = multihost_utils.process_allgather(np.int32(len(items)))
    lengths = np.zeros(max(counts), np.int32)
    lengths[: len(items)] = [len(item) for item in items]
    lengths = multihost_utils.process_allgather(lengths)
    longest = int(lengths.sum(axis=1, dtype=np.int64).max())
    longest += -longest % (1 << max(longest.bit_length() - 4, 0))  # few sizes: each is compiled once
    own = np.frombuffer(b"".join(items), np.uint8)
    blobs = multihost_utils.process_allgather(np.pad(own, (0, longest - own.size)))
    everything = []
    for blob, its_lengths, count in zip(blobs, lengths, counts, strict=True):
        ends = np.cumsum(its_lengths[:count], dtype=np.int64)
        everything += [blob[end - size : end].tobytes() for size, end in zip(its_lengths, ends, strict=False)]
    return everything


def exchange_rows(array: np.ndarray) -> np.ndarray:
    """Rows of every process, in the order of the processes: [own, ...] -> [all, ...], same type."""
    if jax.process_count() == 1:
        return array
    rows = exchange([row.tobytes() for row in array])
    return np.frombuffer(b"".join(rows), array.dtype).reshape(len(rows), *array.shape[1:])
