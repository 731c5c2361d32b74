"""Methods: what is trained, what travels, and how the server merges it.

A method is a bundle of functions over an explicit server state, in the spirit of
`optax.GradientTransformation`. federation/rounds.py calls them, and no file outside this folder knows them by
name. To add one, write a file with a function that returns a `Method`, add a line to `METHODS`, and say in
checks.py of which family it is.
"""

from collections.abc import Callable
from typing import Any

from deltamask_jax.methods.checks import (
    MASK_METHODS,
    SEND_VALUES,
    WEIGHT_METHODS,
    check_settings,
    trains_prefix,
    tunes_parts,
)
from deltamask_jax.methods.deepreduce import deepreduce
from deltamask_jax.methods.deltamask import deltamask, flip_codecs
from deltamask_jax.methods.drive import drive
from deltamask_jax.methods.eden import eden
from deltamask_jax.methods.fedavg import fedavg
from deltamask_jax.methods.fedcof import fedcof
from deltamask_jax.methods.fedmask import fedmask
from deltamask_jax.methods.fedpm import fedpm
from deltamask_jax.methods.feedsign import feedsign
from deltamask_jax.methods.klms import klms
from deltamask_jax.methods.linear_probe import linear_probe
from deltamask_jax.methods.method import Method
from deltamask_jax.methods.peft import peft
from deltamask_jax.methods.qsgd import qsgd
from deltamask_jax.methods.signsgd import signsgd
from deltamask_jax.privacy import mechanism
from deltamask_jax.registry import look_up
from deltamask_jax.task import Task

__all__ = [
    "MASK_METHODS",
    "METHODS",
    "SEND_VALUES",
    "WEIGHT_METHODS",
    "Method",
    "build",
    "check",
    "trains_prefix",
    "tunes_parts",
]


def _masks(config) -> dict[str, Any]:
    """What every mask method takes beside its own options."""
    return {
        "options": config.mask,
        "rounds": config.rounds,
        "participation": config.participation,
        "clients": config.clients,
        "gradient": mechanism(config).gradient,
    }


def _flips(config) -> dict[str, Any]:
    return _masks(config) | {"bounds": config.robust, "hold": config.downlink.hold}


def _weights(config) -> dict[str, Any]:
    mine = {"options": config.fedavg, "trains_head": config.head.trained, "rounds": config.rounds}
    return mine | {"clients": config.clients, "privacy": mechanism(config)}


# Which part of a config each method takes.
METHODS: dict[str, Callable[[Any, Task], Method]] = {
    "deltamask": lambda c, task: deltamask(task, codec_of=flip_codecs(c), **_flips(c)),
    "fedpm": lambda c, task: fedpm(task, **_masks(c), **c.fedpm),
    "fedmask": lambda c, task: fedmask(task, **_masks(c), **c.fedmask),
    "deepreduce": lambda c, task: deepreduce(task, fpr=c.codec.fpr, **c.deepreduce, **_flips(c)),
    "klms": lambda c, task: klms(task, **_masks(c), **c.klms),
    "fedavg": lambda c, task: fedavg(task, **_weights(c)),
    "eden": lambda c, task: eden(task, **_weights(c), **c.eden),
    "drive": lambda c, task: drive(task, **_weights(c)),
    "qsgd": lambda c, task: qsgd(task, **_weights(c), **c.qsgd),
    "signsgd": lambda c, task: signsgd(task, **_weights(c)),
    "linear_probe": lambda c, task: linear_probe(
        task, **c.linear_probe, rounds=c.rounds, privacy=mechanism(c)
    ),
    "peft": lambda c, task: peft(
        task, c.peft, rounds=c.rounds, seed=c.seed, trains_head=c.head.trained, privacy=mechanism(c)
    ),
    "fedcof": lambda c, task: fedcof(task, **c.fedcof),
    "feedsign": lambda c, task: feedsign(task, c.feedsign, c.peft, seed=c.seed),
}


def check(config) -> None:
    """Refuse an unknown method, or settings that it cannot have, before anything slow happens.

    Raises:
        ValueError: unknown name or option; the nearest valid one is named.
    """
    look_up("config.method", config.method, METHODS)
    check_settings(config)


def build(config, task: Task) -> Method:
    """The method named by `config.method`."""
    return METHODS[config.method](config, task)
