"""Methods: what is trained, what travels, and how the server merges it.

A method is a bundle of functions over an explicit server state, in the spirit of
`optax.GradientTransformation`. `rounds.py` calls them, and no file but this one knows them by name. To add
one, write a file with a function `(config, task) -> Method` and add a line to `METHODS`.
"""

from deltamask_jax.methods.deepreduce import deepreduce
from deltamask_jax.methods.deltamask import deltamask, flip_codecs
from deltamask_jax.methods.drive import drive
from deltamask_jax.methods.eden import eden
from deltamask_jax.methods.fedavg import fedavg, trains_backbone
from deltamask_jax.methods.fedmask import fedmask
from deltamask_jax.methods.fedpm import fedpm
from deltamask_jax.methods.klms import klms
from deltamask_jax.methods.linear_probe import linear_probe
from deltamask_jax.methods.masking import aggregator
from deltamask_jax.methods.method import Method
from deltamask_jax.methods.peft import check_kind, peft, tunes_prefix
from deltamask_jax.methods.qsgd import qsgd
from deltamask_jax.methods.signsgd import signsgd
from deltamask_jax.models import PRESETS
from deltamask_jax.registry import look_up
from deltamask_jax.task import Task

__all__ = ["METHODS", "Method", "build", "check", "trains_prefix"]

MASK_METHODS = {
    "deltamask": deltamask,
    "fedpm": fedpm,
    "fedmask": fedmask,
    "deepreduce": deepreduce,
    "klms": klms,
}
WEIGHT_METHODS = {"fedavg": fedavg, "eden": eden, "drive": drive, "qsgd": qsgd, "signsgd": signsgd}
SEND_FLIPS = ("deltamask", "deepreduce")  # updates are packed flips against the global mask
ABOUT_FLIPS = ("trimmed", "median", "all_flip", "random_flip", "collude", "collude_near")
METHODS = MASK_METHODS | WEIGHT_METHODS | {"linear_probe": linear_probe, "peft": peft}
# Methods that may train before the frozen prefix's cut, and when they do.
TRAINS_PREFIX = {"peft": tunes_prefix} | dict.fromkeys(WEIGHT_METHODS, trains_backbone)


def check(config) -> None:
    """Refuse an unknown method or codec, or a mask aggregator the method lacks, before anything slow happens.

    Raises:
        ValueError: unknown name or option; the nearest valid one is named.
    """
    look_up("config.method", config.method, METHODS)
    flip_codecs(config)
    aggregator(config)
    if config.method == "peft":
        check_kind(config.peft.kind, look_up("model", config.model.name, PRESETS), config.model.name)
    if config.method not in SEND_FLIPS:
        asked = {"robust.aggregator": config.robust.aggregator, "attack.kind": config.attack.kind}
        for name, value in asked.items():
            if value in ABOUT_FLIPS:
                raise ValueError(
                    f"config.{name}={value!r} is about flips, which method {config.method!r} does not send: "
                    f"use one of {', '.join(SEND_FLIPS)}"
                )


def trains_prefix(config) -> bool:
    """Whether the method trains parameters before the frozen prefix's cut, so that nothing can be cached."""
    return TRAINS_PREFIX.get(config.method, lambda config: False)(config)


def build(config, task: Task) -> Method:
    """The method named by `config.method`."""
    return METHODS[config.method](config, task)
