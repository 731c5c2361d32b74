"""Optional mirrors of metrics.jsonl: TensorBoard and Weights & Biases. Both are off by default."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

Record = dict[str, Any]  # one line of metrics.jsonl


@dataclasses.dataclass(frozen=True)
class Tracker:
    """`log` takes a line of metrics.jsonl, `close` ends the run."""

    log: Callable[[Record], None]
    close: Callable[[], None]


def open_trackers(config, workdir: Path) -> list[Tracker]:
    """The trackers the config asks for.

    Raises:
        ValueError: a tracker's package is not installed, or does not start; the message says what to do.
    """
    chosen = [(config.tensorboard, _tensorboard), (config.wandb, _weights_and_biases)]
    return [make(config, workdir) for wanted, make in chosen if wanted]


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a line, without its round."""
    return {name: value for name, value in record.items() if type(value) in (int, float) and name != "round"}


def _tensorboard(config, workdir: Path) -> Tracker:
    from tensorboardX import SummaryWriter  # slow to import

    writer = SummaryWriter(str(workdir / "tensorboard"))

    def log(record: Record) -> None:
        for name, value in scalars(record).items():
            writer.add_scalar(name, value, record["round"])
        writer.flush()

    return Tracker(log, writer.close)


def _weights_and_biases(config, workdir: Path) -> Tracker:
    try:
        from wandb import init  # not `import wandb`: a folder of that name would do
    except ImportError:
        raise ValueError('config.wandb needs: pip install "deltamask_jax[wandb]"') from None
    settings = {
        "project": config.wandb,
        "name": workdir.name,
        "config": config.to_dict(),
        "dir": str(workdir),
    }
    try:
        run = init(**settings)
    except Exception as error:  # no login, no network: wandb has a type of its own for each
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"config.wandb={config.wandb!r}: {reason}; WANDB_MODE=offline needs no login"
        ) from error
    return Tracker(lambda record: run.log(scalars(record), step=record["round"]), run.finish)
