"""Which settings go together, method by method: refused before anything slow happens."""

from deltamask_jax.codecs.tally import MOST_VOTERS
from deltamask_jax.data import partition
from deltamask_jax.methods.deltamask import flip_codecs
from deltamask_jax.methods.peft import check_kind, tunes_prefix
from deltamask_jax.models import PRESETS
from deltamask_jax.registry import look_up

MASK_METHODS = ("deltamask", "fedpm", "fedmask", "deepreduce", "klms")
WEIGHT_METHODS = ("fedavg", "eden", "drive", "qsgd", "signsgd")
SEND_FLIPS = ("deltamask", "deepreduce")  # updates are packed flips against the global mask
SEND_VALUES = (*WEIGHT_METHODS, "linear_probe", "peft")
NO_GRADIENTS = {"fedcof": "sends means of features", "feedsign": "sends signs of differences of losses"}
ABOUT_FLIPS = ("clip", "trimmed", "median", "all_flip", "random_flip", "collude", "collude_near")


def check_settings(config) -> None:
    """Refuse what does not go together with a known method, before anything slow happens.

    Raises:
        ValueError: naming the settings, and what to use; the nearest valid one for an unknown name.
    """
    flip_codecs(config)
    _check_training(config)
    _check_masks(config)
    _check_flips(config)
    _check_votes(config)
    if config.dp.level != "none":
        _check_privacy(config)


def _check_training(config) -> None:
    """Refuse to train parts that the model lacks, or nothing.

    Raises:
        ValueError: as `check_settings`.
    """
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


def _check_masks(config) -> None:
    """Refuse aggregators, rankings and hard rounds that the masks of this method cannot have.

    Raises:
        ValueError: as `check_settings`.
    """
    names = dict.fromkeys(("beta", "running", "control_variate"))
    look_up("config.mask.aggregator", config.mask.aggregator, names)
    if config.mask.aggregator == "control_variate" and config.method in ("fedmask", "klms"):
        raise ValueError(
            f"config.mask.aggregator='control_variate' needs masks drawn from public uniforms, which "
            f"{config.method} does not have: use 'beta' or 'running'"
        )
    if _thins(config) and config.mask.aggregator != "control_variate":
        raise ValueError(
            "config.mask.ranking='thin' weighs votes by 1/κ: it needs mask.aggregator='control_variate'"
        )
    hard = config.mask.hard_rounds if config.method in MASK_METHODS else 0
    if hard and config.mask.aggregator != "control_variate":
        raise ValueError(
            f"config.mask.hard_rounds={hard} needs mask.aggregator='control_variate': a posterior draws θ "
            "back from its ends"
        )
    if hard and hard >= config.rounds:
        raise ValueError(f"config.mask.hard_rounds={hard}: must be fewer than rounds={config.rounds}")


def _check_flips(config) -> None:
    """Refuse attacks on flips, and defences, where no flips travel.

    Raises:
        ValueError: as `check_settings`.
    """
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


def _check_votes(config) -> None:
    """Refuse more voters than are counted, and to hold back votes that never go out.

    Raises:
        ValueError: as `check_settings`.
    """
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
    kept = min(config.mask.kappa, config.mask.kappa_final) if _thins(config) else 1.0
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


def _thins(config) -> bool:
    """Whether flips are left out at random, and votes weigh the more for it."""
    return config.method == "deltamask" and config.mask.ranking == "thin"


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
