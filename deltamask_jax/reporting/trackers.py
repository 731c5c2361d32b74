"""Optional mirrors of metrics.jsonl: TensorBoard and Weights & Biases. Both are off by default."""

import secrets
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from deltamask_jax.workdir import files

Record = dict[str, Any]  # one line of metrics.jsonl
Tracker = Callable[[Record], None]  # logs it


@contextmanager
def opened_trackers(config, workdir: Path) -> Generator[list[Tracker]]:
    """The trackers the config asks for; they are closed however the run ends.

    Raises:
        ValueError: a tracker's package is not installed, or does not start; the message says what to do.
    """
    chosen = [(config.tensorboard, _tensorboard), (config.wandb, _weights_and_biases)]
    with ExitStack() as opened:
        yield [opened.enter_context(make(config, workdir)) for wanted, make in chosen if wanted]


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a line, without its round."""
    return {name: value for name, value in record.items() if type(value) in (int, float) and name != "round"}


@contextmanager
def _tensorboard(config, workdir: Path) -> Generator[Tracker]:
    from tensorboardX import SummaryWriter  # slow to import

    writer = None

    def log(record: Record) -> None:
        nonlocal writer
        if writer is None:  # an interrupted run may have logged this round and later ones: they are purged
            writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=record["round"])
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record["round"])
        writer.flush()

    try:
        yield log
    finally:
        if writer is not None:
            writer.close()


@contextmanager
def _weights_and_biases(config, workdir: Path) -> Generator[Tracker]:
    try:
        from wandb import init  # not `import wandb`: a folder of that name would do
    except ImportError:
        raise ValueError('config.wandb needs: pip install "deltamask_jax[wandb]"') from None
    settings = {
        "project": config.wandb,
        "name": workdir.name,
        "config": config.to_dict(),
        "dir": str(workdir),
        "id": _id_in(workdir),
        "resume": "allow",  # rounds that are played again come out the same; those it has it does not take
        "reinit": True,  # not the run that somebody in this process has left open
    }
    try:
        run = init(**settings)
    except Exception as error:  # no login, no network: wandb has a type of its own for each
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"config.wandb={config.wandb!r}: {reason}; WANDB_MODE=offline needs no login"
        ) from error
    try:
        yield lambda record: run.log(scalars(record), step=record["round"])
    except BaseException:
        run.finish(exit_code=1)
        raise
    run.finish()


def _id_in(workdir: Path) -> str:
    """The run's id at Weights & Biases. It stays in the workdir, so that a run that goes on is the same one
    there, and one that starts over is another."""
    path = workdir / "wandb" / "deltamask_jax_id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        files.write_text(path, secrets.token_hex(8))
    return path.read_text()
