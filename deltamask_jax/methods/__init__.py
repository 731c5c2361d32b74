"""Methods: what is trained, what travels, and how the server merges it.

A method is a bundle of functions over an explicit server state, in the spirit of
`optax.GradientTransformation`. `rounds.py` calls them, and no file but this one knows them by name. To add
one, write a file with a function `(config, task) -> Method` and add a line to `METHODS`.
"""

from deltamask_jax.methods.deltamask import deltamask, flip_codecs
from deltamask_jax.methods.fedavg import fedavg
from deltamask_jax.methods.linear_probe import linear_probe
from deltamask_jax.methods.method import Method, Task
from deltamask_jax.registry import look_up

__all__ = ["METHODS", "Method", "Task", "build", "check"]

SEND_FLIPS = ("deltamask",)  # updates are packed flips against the global mask

METHODS = {"deltamask": deltamask, "fedavg": fedavg, "linear_probe": linear_probe}


def check(config) -> None:
    """Refuse an unknown method or codec before anything slow happens.

    Raises:
        ValueError: unknown name or option; the nearest valid one is named.
    """
    look_up("config.method", config.method, METHODS)
    flip_codecs(config)
    if config.method not in SEND_FLIPS:
        asked = {"robust.aggregator": config.robust.aggregator, "attack.kind": config.attack.kind}
        for name, value in asked.items():
            if value in ("trimmed", "median", "clip", "all_flip", "random_flip"):
                raise ValueError(
                    f"config.{name}={value!r} is about flips, which method {config.method!r} does not send: "
                    f"use one of {', '.join(SEND_FLIPS)}"
                )


def build(config, task: Task) -> Method:
    """The method named by `config.method`."""
    return METHODS[config.method](config, task)
