"""Several hosts: each process trains a share of every cohort, then all exchange what the clients sent.

Every process runs the same program on the same config: it holds the same server state, computes the same
broadcast, and after the exchange decodes the same payloads in the same order. So the state needs no
synchronising, and a run on many processes is the run of one. Each host reads the data set itself.

    host 0:  python -m deltamask_jax.main --config=… --coordinator=host0:9999 --processes=2 --process=0
    host 1:  python -m deltamask_jax.main --config=… --coordinator=host0:9999 --processes=2 --process=1

Process 0 alone keeps checkpoints, and sends its newest to the others when a run continues. Where one process
ends before the run does, all end (peers.py).
"""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deltamask_jax.federation import peers

_others: peers.Peers | None = None  # of this process, as jax's devices are; None: it is alone


def start(coordinator: str, processes: int | None, process: int | None, patience: float = 300) -> None:
    """Join the other processes.

    Args:
        coordinator: 'host:port' of process 0; 'auto' where jax knows its cluster (TPU pods, Slurm, Open MPI,
            Kubernetes); '' = this process is alone.
        processes, process: how many there are, and which this is, from 0. Not needed with 'auto'.
        patience: seconds to wait for the others.

    Raises:
        ValueError: `processes` or `process` is missing, makes no sense or is another's too.
        OSError: the others did not come.
    """
    global _others
    if not coordinator:
        if (processes, process) not in ((None, None), (1, None), (1, 0)):
            raise ValueError(
                "--processes and --process need --coordinator=HOST:PORT of process 0, or --coordinator=auto: "
                "without it this process would run alone"
            )
        return
    if coordinator == "auto":
        coordinator, processes, process = _cluster(patience)
    if processes is None or process is None or not 0 <= process < processes:
        raise ValueError("--coordinator=HOST:PORT needs --processes=N and --process=I with 0 ≤ I < N")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"--coordinator={coordinator}: must be HOST:PORT of process 0, or 'auto'")
    if processes > 1:
        host = host.strip("[]")
        _others = (
            peers.join(host, int(port), process, processes, patience)
            if process
            else peers.listen(host, int(port), processes, patience)
        )


def _cluster(patience: float) -> tuple[str, int, int]:
    """Coordinator, number of processes, and which this is, from the cluster that started them."""
    from jax._src.clusters import ClusterEnv  # jax.distributed would start its own service as well

    try:
        coordinator, processes, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
            None, None, None, None, None, int(patience)
        )
    except (RuntimeError, LookupError, ValueError) as error:  # the cluster's variables, as jax reads them
        why = f"{type(error).__name__}: {error}"
        raise ValueError(
            f"--coordinator=auto: jax cannot read this cluster ({why}); give HOST:PORT of process 0"
        ) from None
    if coordinator is None or processes is None or process is None:
        raise ValueError("--coordinator=auto: jax finds no cluster here; give HOST:PORT of process 0")
    if devices:  # several processes on one host: a GPU each
        for platform in ("cuda", "rocm"):
            jax.config.update(f"jax_{platform}_visible_devices", ",".join(map(str, devices)))
    return coordinator, processes, process


@contextmanager
def ending_together() -> Generator[None]:
    """Inside, an error of one process ends all; and none leaves before all are done.

    Raises:
        BaseException: whatever was raised inside, after the others were told of it.
    """
    try:
        yield
        exchange([])
    except BaseException as error:
        leave(next(iter(str(error).splitlines()), "") or type(error).__name__)
        raise
    leave()


def leave(reason: str = "") -> None:
    """Tell the others that this process is done, or why it stops, which stops them too."""
    if _others is not None:
        _others.leave(reason)


@contextmanager
def before_exit(prepare: Callable[[], str]) -> Generator[None]:
    """Inside, `prepare` is called before another process's end ends this one, and what it returns is shown.

    Args:
        prepare: runs on another thread while the main thread goes on.
    """
    if _others is None:
        yield
        return
    earlier, _others.before_exit = _others.before_exit, prepare
    try:
        yield
    finally:
        _others.before_exit = earlier


def count() -> int:
    """How many processes there are."""
    return 1 if _others is None else _others.count


def index() -> int:
    """Which of them this is, from 0."""
    return 0 if _others is None else _others.index


def workdir(path: str | Path) -> Path:
    """Where this process writes: process 0 the run itself, each other the same results again beside it."""
    path = Path(path)
    if not index():
        return path
    path = path.absolute()  # '.' has no name
    return path.with_name(f"{path.name}.process{index()}")


def share(clients: int) -> slice:
    """Rows of the cohort that this process trains.

    Raises:
        ValueError: fewer clients than processes.
    """
    if clients < count():
        raise ValueError(
            f"a cohort of {clients} cannot be divided over {count()} processes: raise "
            "config.participation or config.clients, or start fewer processes"
        )
    return block(clients)


def block(rows: int) -> slice:
    """Which of so many rows are this process's: one block per process, sizes one apart at most."""
    processes, process = count(), index()
    return slice(process * rows // processes, (process + 1) * rows // processes)


def exchange(items: list[bytes]) -> list[bytes]:
    """What every process holds, in the order of the processes; all must call this together."""
    return items if _others is None else _others.exchange(items)


def agree(facts: dict[str, Any]) -> None:
    """Compare with the other processes what must be the same; all must call this together.

    Args:
        facts: by names that a user knows; JSON values.

    Raises:
        ValueError: some differ; in every process.
    """
    if count() == 1:
        return
    first, *others = map(json.loads, exchange([json.dumps(facts).encode()]))
    for process, theirs in enumerate(others, start=1):
        differing = [
            f"{name} is {theirs.get(name, 'absent')!r} there and {first.get(name, 'absent')!r} in process 0"
            for name in [*first, *(theirs.keys() - first.keys())]
            if json.dumps(theirs.get(name, "absent")) != json.dumps(first.get(name, "absent"))
        ]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise ValueError(
                f"process {process} differs ({'; '.join(differing[:3])}{more}): all processes need the same "
                "command, program, data and hardware"
            )


def exchange_rows(array: np.ndarray) -> np.ndarray:
    """Rows of every process, in the order of the processes: [own, ...] -> [all, ...], same type.

    Args:
        array: this process's rows; all must call this together, with one shape behind the first axis.
    """
    if _others is None:
        return array
    rows = exchange([row.tobytes() for row in array])
    return np.frombuffer(b"".join(rows), array.dtype).reshape(len(rows), *array.shape[1:])
