"""Methods: what is trained, what travels, and how the server merges it.

A method is a bundle of functions over an explicit server state, in the spirit of
`optax.GradientTransformation`. federation/rounds.py calls them, and no file but this one knows them by name.
To add one, write a file with a function that returns a `Method` and add a line to `METHODS`.
"""

from collections.abc import Callable
from typing import Any

from deltamask_jax.codecs.tally import MOST_VOTERS
from deltamask_jax.data import partition
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
from deltamask_jax.methods.masking import check_aggregator, check_hard_rounds
from deltamask_jax.methods.method import Method
from deltamask_jax.methods.peft import check_kind, peft, tunes_prefix
from deltamask_jax.methods.qsgd import qsgd
from deltamask_jax.methods.signsgd import signsgd
from deltamask_jax.models import PRESETS
from deltamask_jax.privacy import mechanism
from deltamask_jax.registry import look_up
from deltamask_jax.task import Task

__all__ = ["METHODS", "Method", "build", "check", "trains_prefix", "tunes_parts"]


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
MASK_METHODS = ("deltamask", "fedpm", "fedmask", "deepreduce", "klms")
WEIGHT_METHODS = ("fedavg", "eden", "drive", "qsgd", "signsgd")
SEND_FLIPS = ("deltamask", "deepreduce")  # updates are packed flips against the global mask
SEND_VALUES = (*WEIGHT_METHODS, "linear_probe", "peft")
NO_GRADIENTS = {"fedcof": "sends means of features", "feedsign": "sends signs of differences of losses"}
ABOUT_FLIPS = ("clip", "trimmed", "median", "all_flip", "random_flip", "collude", "collude_near")


def check(config) -> None:
    """Refuse an unknown method or codec, or a mask aggregator the method lacks, before anything slow happens.

    Raises:
        ValueError: unknown name or option; the nearest valid one is named.
    """
    look_up("config.method", config.method, METHODS)
    flip_codecs(config)
    check_aggregator(config)
    if tunes_parts(config):
        check_kind(config.peft.kind, look_up("model", config.model.name, PRESETS), config.model.name)
    if config.method == "fedcof" and (config.rounds, config.head.init) != (1, "he"):
        raise ValueError(
            f"config.method='fedcof' is one round and makes its own head: use --config.rounds=1 and "
            f"--config.head.init=he (now {config.rounds} and {config.head.init!r}); to train from its head, "
            f"--config.head.init=fedcof with another method"
        )
    if not config.head.trained:
        beyond = config.method in WEIGHT_METHODS or (config.method == "peft" and config.peft.kind != "head")
        if config.method not in MASK_METHODS and not beyond:
            raise ValueError(
                f"config.head.trained=False is not for method {config.method!r}, which trains the head: "
                f"it is for {', '.join(WEIGHT_METHODS)} and the kinds of peft beyond 'head'"
            )
    if config.method not in SEND_FLIPS:
        asked = {"robust.aggregator": config.robust.aggregator, "attack.kind": config.attack.kind}
        about = {name: value for name, value in asked.items() if value in ABOUT_FLIPS}
        if config.robust.max_flip_rate:
            about["robust.max_flip_rate"] = config.robust.max_flip_rate
        for name, value in about.items():
            raise ValueError(
                f"config.{name}={value!r} is about flips, which method {config.method!r} does not send: "
                f"use one of {', '.join(SEND_FLIPS)}"
            )
    if config.mask.client_state == "kept" and config.attack.kind in ABOUT_FLIPS:
        raise ValueError(
            f"config.attack.kind={config.attack.kind!r} changes updates of flips alone: it needs "
            f"mask.client_state='fresh'"
        )
    thin = config.method == "deltamask" and config.mask.ranking == "thin"
    if thin and config.mask.aggregator != "control_variate":
        raise ValueError(
            "config.mask.ranking='thin' weighs votes by 1/κ: it needs mask.aggregator='control_variate'"
        )
    if config.mask.hard_rounds and config.method in MASK_METHODS:
        check_hard_rounds(config)
    if config.dp.level != "none":
        _check_privacy(config)
    can_hold = config.mask.aggregator == "control_variate" and config.robust.aggregator == "mean"
    if config.downlink.hold > 1 and not (config.method in SEND_FLIPS and can_hold):
        raise ValueError(
            f"config.downlink.hold={config.downlink.hold} holds back whole votes: it needs one of "
            f"{', '.join(SEND_FLIPS)} with mask.aggregator='control_variate' and robust.aggregator='mean'"
        )
    if config.downlink.hold > 1 and config.downlink.news == "relay":
        raise ValueError(
            f"config.downlink.news='relay' tells what clients sent, and downlink.hold={config.downlink.hold} "
            "holds some of it back: use 'smaller' or 'tally'"
        )
    kept = min(config.mask.kappa, config.mask.kappa_final) if thin else 1.0
    voters = partition.cohort_size(config.clients, config.participation)
    most = MOST_VOTERS + 1 - config.downlink.hold
    if config.method in MASK_METHODS and voters > most:
        raise ValueError(
            f"config.participation={config.participation:g}: a round asks {voters:,} clients, whose votes "
            f"are counted up to {most:,}; lower it"
        )
    votes = kept * voters
    if config.downlink.hold > max(votes, 1):
        raise ValueError(
            f"config.downlink.hold={config.downlink.hold} is never reached by rounds of {votes:g} votes, "
            f"which move θ from one end to the other: lower it"
        )


def _check_privacy(config) -> None:
    """Refuse what differential privacy cannot be had with.

    Raises:
        ValueError: naming the reason, and what to use.
    """
    level, method = config.dp.level, config.method
    if level == "example" and method not in (*MASK_METHODS, *SEND_VALUES):
        does = NO_GRADIENTS.get(method, "is not known to train by nothing but noisy gradients")
        raise ValueError(
            f"config.dp.level='example' is about gradients, and method {method!r} {does}: "
            f"use one of {', '.join((*SEND_VALUES, *MASK_METHODS))}"
        )
    if level == "client" and method not in SEND_VALUES:
        raise ValueError(
            f"config.dp.level='client' clips and adds up the values that clients send, and method {method!r} "
            f"sends none: use dp.level='example', or one of {', '.join(SEND_VALUES)}"
        )
    if config.head.init not in ("he", "lp"):
        raise ValueError(
            f"config.head.init={config.head.init!r} sends statistics of the examples without noise: with "
            f"config.dp.level={level!r} use 'lp', which is trained by the same mechanism, or 'he'"
        )
    if config.min_clients > 1:
        raise ValueError(
            f"config.min_clients={config.min_clients}: with config.dp.level={level!r} no round is played "
            f"again, as that would spend more: use 1"
        )


def tunes_parts(config) -> bool:
    """Whether what is trained is what `config.peft` says."""
    return config.method == "peft" or (config.method == "feedsign" and config.feedsign.trained == "peft")


def trains_prefix(config) -> bool:
    """Whether the method trains parameters before the frozen prefix's cut, so that nothing can be cached."""
    if tunes_parts(config):
        return tunes_prefix(config.peft)
    return config.method in WEIGHT_METHODS and config.fedavg.trained == "backbone"


def build(config, task: Task) -> Method:
    """The method named by `config.method`."""
    return METHODS[config.method](config, task)
