"""Checks on a run's config, and the options after the colon of a config file's name.

Every setting lives in configs/common.py with its default and unit; this file knows only which values make
no sense. Names of methods, codecs, models and data sets are checked by their own registries.
"""

import difflib
import math
from collections.abc import Iterable

from ml_collections import ConfigDict

from deltamask_jax.registry import look_up

# Allowed values: (lowest, highest), both inclusive.
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
    "partition.alpha": (1e-6, 1e6),  # beyond, equal shares: partition.name = 'iid'
    "partition.classes_per_client": (1, 2**20),
    "partition.min_examples": (0, 2**31),
    "model.image_size": (0, 4096),
    "model.trained_blocks": (1, 1000),
    "head.epochs": (1, 100_000),
    "head.learning_rate": (0.0, math.inf),
    "linear_probe.learning_rate": (0.0, math.inf),
    "mask.theta_init": (1e-3, 1 - 1e-3),
    "mask.theta_clip": (1e-4, 0.49),
    "mask.learning_rate": (1e-9, math.inf),
    "mask.learning_rate_final": (0.0, math.inf),
    "mask.kappa": (1e-6, 1.0),
    "mask.kappa_final": (1e-6, 1.0),
    "mask.lambda0": (1.0, math.inf),
    "fedmask.start": (1e-4, 0.49),
    "klms.bits": (1, 16),
    "klms.block_kl": (1e-3, 100.0),
    "fedavg.learning_rate": (0.0, math.inf),
    "peft.learning_rate": (0.0, math.inf),
    "peft.adapter_width": (1, 2**20),
    "peft.prompts": (1, 2**20),
    "peft.lora_rank": (1, 2**20),
    "fedavg.proximal": (0.0, math.inf),
    "fedavg.server_learning_rate": (1e-9, math.inf),
    "fedavg.server_epsilon": (1e-12, math.inf),
    "eden.bits": (0.001, 8.0),
    "qsgd.levels": (1, 255),
    "qsgd.bucket": (16, 2**20),
    "cohort.chunk": (0, 2**20),
    "cohort.memory": (0.0, math.inf),
    "cohort.weight_shards": (1, 2**20),
    "codec.capacity": (0, 2**31),
    "robust.trim": (0.0, 0.49),
    "robust.max_distance": (0.0, 1e6),
    "robust.max_flip_rate": (0.0, 1.0),
    "faults.dropout": (0.0, 1.0),
    "faults.straggler": (0.0, 1.0),
    "faults.step_seconds": (0.0, math.inf),
    "faults.speed_spread": (0.0, 10.0),
    "faults.deadline": (0.0, math.inf),
    "attack.share": (0.0, 1.0),
    "attack.flip_rate": (0.0, 1.0),
    "checkpoint.every": (1, 2**31),
    "checkpoint.keep": (1, 1000),
}

# Settings whose names no registry owns.
CHOICES = {
    "partition.name": ("dirichlet", "iid", "pathological", "users"),
    "model.dtype": ("float32", "bfloat16"),
    "head.init": ("lp", "fit", "he"),
    "mask.uniforms": ("shared", "per_client"),
    "mask.ranking": ("kl", "random"),
    "mask.aggregator": ("beta", "running", "control_variate"),
    "fedpm.coding": ("marginal", "given_theta"),
    "fedpm.straight_through": ("sigmoid", "times_p"),
    "deepreduce.policy": ("P0", "P1", "P2"),
    "mask.evaluate": ("mean", "threshold"),
    "peft.kind": ("head", "bias", "adapter", "prompt", "lora"),
    "peft.scope": ("network", "suffix"),
    "peft.prompt_depth": ("deep", "shallow"),
    "peft.wire": ("float32", "float16", "8bit"),
    "fedavg.trained": ("kernels", "blocks", "backbone"),
    "fedavg.server": ("sgd", "adam", "yogi"),
    "fedavg.downlink": ("float32", "float16", "bfloat16"),
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


def validate(config: ConfigDict) -> None:
    """Refuse values that make no sense.

    Raises:
        ValueError: the setting, its value, and what is allowed.
    """
    flat = flatten(config)
    for name, (low, high) in RANGES.items():
        value = flat[name]
        if not low <= value <= high:  # also refuses NaN
            bounds = f"at least {low:g}" if math.isinf(high) or high >= 2**20 else f"in {low:g} … {high:g}"
            raise ValueError(f"config.{name}={value}: must be {bounds}")
    for name, choices in CHOICES.items():
        look_up(f"config.{name}", flat[name], dict.fromkeys(choices))
    cohort = max(1, int(config.participation * config.clients + 0.5))
    if config.min_clients > cohort:
        raise ValueError(
            f"config.min_clients={config.min_clients}: a round asks only {cohort} clients; lower it"
        )
    if config.prefix_cache not in ("memory", "off") and "/" not in config.prefix_cache:
        raise ValueError(
            f"config.prefix_cache={config.prefix_cache!r}: must be 'memory', 'off' or a folder like ./cache"
        )


def parse_options(text: str, defaults: dict) -> dict:
    """The options of `--config=file.py:dataset=tfds:cifar100,alpha=0.1,smoke`.

    Args:
        text: comma-separated `name=value`, or just `name` for a flag.
        defaults: every option with its default, whose type the value takes.

    Raises:
        ValueError: unknown option, or a value of the wrong type.
    """
    options = dict(defaults)
    for item in filter(None, (text or "").split(",")):
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
