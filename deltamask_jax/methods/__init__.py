"""Methods: what is trained, what travels, and how the server merges it.

A method is a bundle of functions over an explicit server state, in the spirit of
`optax.GradientTransformation`. `rounds.py` calls them, and no file but this one knows them by name. To add
one, write a file with a function `(config, task) -> Method` and add a line to `METHODS`.
"""

from deltamask_jax.methods.deltamask import deltamask, flip_codecs
from deltamask_jax.methods.drive import drive
from deltamask_jax.methods.eden import eden
from deltamask_jax.methods.fedavg import fedavg, refuse_cached_prefix
from deltamask_jax.methods.linear_probe import linear_probe
from deltamask_jax.methods.method import Method, Task
from deltamask_jax.methods.qsgd import qsgd
from deltamask_jax.methods.signsgd import signsgd
from deltamask_jax.registry import look_up

__all__ = ["METHODS", "Method", "Task", "build", "check"]

WEIGHT_METHODS = {"fedavg": fedavg, "eden": eden, "drive": drive, "qsgd": qsgd, "signsgd": signsgd}
METHODS = {"deltamask": deltamask, "linear_probe": linear_probe} | WEIGHT_METHODS


def check(config) -> None:
    """Refuse an unknown method or codec before anything slow happens.

    Raises:
        ValueError: unknown name or option; the nearest valid one is named.
    """
    look_up("config.method", config.method, METHODS)
    flip_codecs(config)
    if config.method in WEIGHT_METHODS:
        refuse_cached_prefix(config)


def build(config, task: Task) -> Method:
    """The method named by `config.method`."""
    return METHODS[config.method](config, task)
