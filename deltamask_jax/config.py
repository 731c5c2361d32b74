"""Checks on a run's config, and the options after the colon of a config file's name.

Every setting lives in configs/common.py with its default and unit; its range stands here and nowhere else.
docs/configuration.md shows both. Names of methods, codecs, models and data sets are checked by their own
registries.
"""

import difflib
from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import RequiredValueError

from deltamask_jax import config_files
from deltamask_jax.registry import look_up

# Allowed values of every number: (lowest, highest), both inclusive and finite.
RANGES = {
    "seed": (0, 2**63 - 1),
    "rounds": (1, 2**31),
    "clients": (1, 2**31),
    "participation": (1e-9, 1.0),
    "local_epochs": (1, 10_000),
    "batch_size": (1, 2**20),
    "eval_every": (1, 2**31),
    "byte_budget": (0, 2**62),
    "min_clients": (1, 2**31),
    "max_repeats": (0, 1000),
    "train_examples": (0, 2**31),
    "test_examples": (0, 2**31),
    "validation_examples": (0, 2**31),
    "partition.alpha": (1e-6, 1e6),  # beyond, equal shares: partition.name = 'iid'
    "partition.classes_per_client": (1, 2**20),
    "partition.min_examples": (0, 2**31),
    "model.image_size": (0, 4096),
    "model.max_length": (2, 8192),
    "model.trained_blocks": (1, 1000),
    "head.epochs": (1, 100_000),
    "head.learning_rate": (0.0, 1e6),
    "linear_probe.learning_rate": (0.0, 1e6),
    "linear_probe.decay": (0.0, 1.0),
    "fedcof.gamma": (0.0, 1e6),
    "mask.theta_init": (1e-3, 1 - 1e-3),
    "mask.theta_clip": (1e-4, 0.49),
    "mask.learning_rate": (1e-9, 1e6),
    "mask.learning_rate_final": (0.0, 1e6),
    "mask.kappa": (1e-6, 1.0),
    "mask.kappa_final": (1e-6, 1.0),
    "mask.lambda0": (1.0, 1e9),
    "mask.hard_rounds": (0, 2**31),
    "fedmask.start": (1e-4, 0.49),
    "klms.bits": (1, 16),
    "klms.block_kl": (1e-3, 100.0),
    "fedavg.learning_rate": (0.0, 1e6),
    "fedavg.decay": (0.0, 1.0),
    "peft.learning_rate": (0.0, 1e6),
    "peft.decay": (0.0, 1.0),
    "peft.adapter_width": (1, 2**20),
    "peft.prompts": (1, 2**20),
    "peft.lora_rank": (1, 2**20),
    "peft.fedsb_rank": (1, 2**20),
    "peft.unilora_size": (1, 2**31),
    "feedsign.learning_rate": (0.0, 1e6),
    "feedsign.perturbation": (1e-9, 1e3),
    "feedsign.directions": (1, 65_536),
    "fedavg.proximal": (0.0, 1e9),
    "fedavg.server_learning_rate": (1e-9, 1e6),
    "fedavg.server_epsilon": (1e-12, 1e6),
    "eden.bits": (0.001, 8.0),
    "qsgd.levels": (1, 255),
    "qsgd.bucket": (16, 2**20),
    "cohort.chunk": (0, 2**20),
    "cohort.memory": (0.0, 1e6),
    "cohort.weight_shards": (1, 2**20),
    "codec.bits": (8, 32),
    "codec.arity": (3, 4),
    "codec.capacity": (0, 2**31),
    "codec.fpr": (2.0**-32, 1 - 2.0**-32),
    "robust.trim": (0.0, 0.49),
    "robust.max_flip_rate": (0.0, 1.0),
    "downlink.hold": (1, 1000),
    "dp.epsilon": (1e-3, 1e3),
    "dp.delta": (1e-15, 0.5),
    "dp.clip": (1e-9, 1e9),
    "dp.noise_multiplier": (0.0, 1e6),
    "dp.microbatch": (1, 2**20),
    "faults.dropout": (0.0, 1.0),
    "faults.straggler": (0.0, 1.0),
    "faults.step_seconds": (0.0, 1e12),
    "faults.speed_spread": (0.0, 10.0),
    "faults.deadline": (0.0, 1e12),
    "attack.share": (0.0, 1.0),
    "attack.flip_rate": (0.0, 1.0),
    "checkpoint.every": (1, 2**31),
    "checkpoint.keep": (1, 1000),
}

# Settings whose names no registry owns.
CHOICES = {
    "client_sampling": ("fixed", "poisson"),
    "dp.level": ("none", "example", "client"),
    "partition.name": ("dirichlet", "iid", "pathological", "users"),
    "model.dtype": ("float32", "bfloat16"),
    "head.init": ("lp", "fit", "fedcof", "he"),
    "fedcof.wire": ("float32", "float16"),
    "mask.client_state": ("fresh", "kept"),
    "mask.uniforms": ("shared", "per_client"),
    "mask.ranking": ("kl", "random", "thin"),
    "mask.aggregator": ("beta", "running", "control_variate"),
    "fedpm.coding": ("marginal", "given_theta"),
    "fedpm.straight_through": ("sigmoid", "times_p"),
    "deepreduce.policy": ("P0", "P1", "P2"),
    "mask.evaluate": ("mean", "threshold"),
    "peft.kind": ("head", "bias", "adapter", "prompt", "lora", "fedsb", "unilora"),
    "peft.scope": ("network", "suffix"),
    "peft.prompt_depth": ("deep", "shallow"),
    "peft.wire": ("float32", "float16", "8bit"),
    "feedsign.trained": ("kernels", "peft"),
    "fedavg.trained": ("kernels", "blocks", "backbone"),
    "fedavg.server": ("sgd", "adam", "yogi"),
    "fedavg.downlink": ("float32", "float16", "bfloat16"),
    "downlink.memory": ("keep", "none"),
    "downlink.news": ("smaller", "relay", "tally"),
    "robust.aggregator": ("mean", "trimmed", "median", "clip"),
    "attack.kind": (
        *("none", "corrupt", "truncate", "replay", "wrong_d"),
        *("all_flip", "random_flip", "collude", "collude_near"),
    ),
    "resume": ("auto", "fresh"),
    "cohort.backend": ("vmap", "loop"),
}


def flatten(config: ConfigDict, prefix: str = "") -> dict:
    """Dotted name -> value of every setting."""
    flat = {}
    for name, value in config.items():
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def nearest(name: str, names: Iterable[str]) -> str:
    """The rest of a sentence about an unknown name."""
    near = difflib.get_close_matches(name, names := list(names), n=1, cutoff=0.3)
    # A misplaced key is often right in its last part: 'alpha' for 'partition.alpha'.
    near = [n for n in names if n.split(".")[-1] == name.split(".")[-1]] or near
    return f"did you mean {near[0]!r}?" if near else f"valid are {', '.join(sorted(names))}"


def change(config: ConfigDict, changes: dict[str, Any]) -> None:
    """Change settings by their dotted names.

    Raises:
        ValueError: an unknown setting, with the nearest that exists, or a value of another type.
    """
    known = flatten(config) | {"codec.clients": ConfigDict()}  # empty by default, and so not in the flat form
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"unknown setting config.{name}: {nearest(name, known)}")
        section, _, last = name.rpartition(".")
        node = config
        for part in filter(None, section.split(".")):
            node = node[part]
        try:
            node[last] = value
        except TypeError:
            _check_type(name, value, known[name])
            raise


def check_names(config: ConfigDict) -> None:
    """Refuse settings that configs/common.py does not have, or has with another type, however they came.

    Raises:
        ValueError: an unknown setting, with the nearest that exists; a missing one; a value of another type.
    """
    try:
        _compare(config, config_files.defaults(), "")
    except RequiredValueError as error:
        raise ValueError(f"config: {error}") from None


_KINDS = {bool: "True or False", int: "a whole number", float: "a number", str: "text", ConfigDict: "a table"}


def _compare(config: ConfigDict, defaults: ConfigDict, section: str) -> None:
    for name, value in config.items():
        dotted = f"{section}{name}"
        if name not in defaults:
            known = flatten(config_files.defaults())
            raise ValueError(f"unknown setting config.{dotted}: {nearest(dotted, known)}")
        if not isinstance(defaults[name], ConfigDict):
            _check_type(dotted, value, defaults[name])
        elif not isinstance(value, ConfigDict):
            raise ValueError(f"config.{dotted}={value!r}: is a section of settings, a ConfigDict")
        elif dotted == "codec.clients":
            _compare_clients(value, defaults)
        else:
            _compare(value, defaults[name], f"{dotted}.")
    missing = [name for name in defaults if name not in config]
    if missing:
        raise ValueError(
            f"config.{section}{missing[0]} is missing: begin with get_config() of configs/common.py"
        )


def _compare_clients(clients: ConfigDict, codec: ConfigDict) -> None:
    """What differs for some clients: settings of the codec section, or options of a codec named there."""
    for who, changes in clients.items():
        if not isinstance(changes, ConfigDict):
            raise ValueError(f"config.codec.clients[{who!r}]={changes!r}: must be a table of codec settings")
        for name, value in changes.items():
            if name == "clients":
                raise ValueError(f"config.codec.clients[{who!r}].clients: a client has no clients of its own")
            if name in codec:
                _check_type(f"codec.clients[{who!r}].{name}", value, codec[name])
                _check_range(f"codec.clients[{who!r}].{name}", value, f"codec.{name}")


def _check_type(dotted: str, value: Any, default: Any) -> None:
    kind = type(default)
    accepted = (int, float) if kind is float else kind
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        shown = f"{value!r} ({type(value).__name__})"
        raise ValueError(f"config.{dotted}={shown}: must be {_KINDS[kind]}, for example {default!r}")


def _check_range(dotted: str, value: Any, setting: str) -> None:
    if setting not in RANGES:
        return
    low, high = RANGES[setting]
    if not low <= value <= high:  # also refuses NaN
        bound = f"at least {low:g}" if value < low else f"at most {high:g}" if value > high else "a number"
        raise ValueError(f"config.{dotted}={value}: must be {bound}")


def validate(config: ConfigDict) -> None:
    """Refuse names, types and values that make no sense, and settings that exclude each other.

    Raises:
        ValueError: the setting, its value, and what is allowed.
    """
    check_names(config)
    flat = flatten(config)
    for name in RANGES:
        _check_range(name, flat[name], name)
    for name, choices in CHOICES.items():
        look_up(f"config.{name}", flat[name], dict.fromkeys(choices))
    if config.attack.kind != "none" and not round(config.attack.share * config.clients):
        raise ValueError(
            f"config.attack.kind={config.attack.kind!r}: nobody attacks, raise config.attack.share"
        )
    cohort = max(1, int(config.participation * config.clients + 0.5))
    if config.min_clients > cohort:
        raise ValueError(
            f"config.min_clients={config.min_clients}: a round asks only {cohort} clients; lower it"
        )
    if config.prefix_cache not in ("memory", "off", "~") and "/" not in config.prefix_cache:
        raise ValueError(
            f"config.prefix_cache={config.prefix_cache!r}: must be 'memory', 'off' or a folder like ./cache"
        )


def parse_options(text: str, defaults: dict) -> dict:
    """The options of `--config=file.py:dataset=tfds:cifar100,alpha=0.1,smoke`.

    Args:
        text: comma-separated `name=value`, or just `name` for a flag. A value `hf:NAME,CONFIG` has a comma.
        defaults: every option with its default, whose type the value takes.

    Raises:
        ValueError: unknown option, or a value of the wrong type.
    """
    options, items = dict(defaults), list[str]()
    for item in filter(None, (text or "").split(",")):
        if items and "=hf:" in items[-1] and "=" not in item and item not in defaults:
            items[-1] += f",{item}"
        else:
            items.append(item)
    for item in items:
        name, equals, value = item.partition("=")
        if name not in defaults:
            raise ValueError(f"unknown option {name!r} after the config's name: {nearest(name, defaults)}")
        kind = type(defaults[name])
        if kind is bool:
            if value not in ("", "true", "false"):
                raise ValueError(f"option {name} is a flag, got {value!r}")
            options[name] = value != "false"
            continue
        try:
            options[name] = kind(value)
        except ValueError:
            raise ValueError(f"option {item!r}: {name} takes a {kind.__name__}") from None
        if not equals:
            raise ValueError(f"option {name!r} needs a value: {name}=…")
    return options
