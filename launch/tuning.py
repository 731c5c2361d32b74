"""What each method needs, which rate it has, what a search tries; settings into a config."""

from typing import Any

from ml_collections import ConfigDict

from deltamask_jax import config as config_lib
from deltamask_jax import methods

# What a method needs on every network. FedPM's aggregator is the Beta posterior; FedMask and KLMS have no
# masks drawn from public uniforms, and so no control variate. FedCOF is one round and starts from no head.
NEEDS: dict[str, dict[str, Any]] = {
    name: {"mask.aggregator": "beta"} for name in ("fedpm", "fedmask", "klms")
} | {"fedcof": {"rounds": 1, "head.init": "he"}}

# The learning rate of each method that has one. Those that compress another's updates train like it and are
# not searched by themselves; SignSGD is, as its error feedback is part of the training.
RATE: dict[str, str] = {
    name: f"{section}.learning_rate"
    for section, names in {
        "linear_probe": ("linear_probe",),
        "fedavg": ("fedavg", "signsgd"),
        "peft": ("peft",),
        "feedsign": ("feedsign",),
        "mask": ("deltamask", "fedpm", "fedmask", "klms"),
    }.items()
    for name in names
}
TRAINS_LIKE = {"eden": "fedavg", "drive": "fedavg", "qsgd": "fedavg", "deepreduce": "deltamask"}

# The rates that launch/search.py begins with: {network: {method: rates}}, ascending by a steady factor.
RATES: dict[str, dict[str, tuple[float, ...]]] = {
    "glyph_vit": {
        "linear_probe": (0.1, 0.3, 0.9),
        "fedavg": (3e-4, 1e-3, 3e-3),
        "signsgd": (3e-4, 1e-3, 3e-3),
        "peft": (3e-3, 1e-2, 3e-2),
        "deltamask": (0.6, 1.2, 2.4),
        "fedpm": (0.6, 1.2, 2.4),
        "fedmask": (0.3, 0.6, 1.2),
        "klms": (0.6, 1.2, 2.4),
        "feedsign": (3e-4, 1e-3, 3e-3),  # of a head; kernels need far smaller steps
    },
    "dinov2_small": {
        "linear_probe": (1e-3, 3e-3, 1e-2),
        "fedavg": (1e-4, 3e-4),
        "signsgd": (1e-4, 3e-4),
        "peft": (3e-3, 1e-2),
        "deltamask": (0.2, 0.4),
        "fedpm": (0.4, 0.8),
        "fedmask": (0.1, 0.2, 0.4),
        "klms": (0.2, 0.4),
    },
}


BOOLEANS = {"true": True, "false": False}  # as they are written, in any case


def rates_of(config: ConfigDict) -> tuple[float, ...]:
    """What a search of a method begins with: the list above, or the config's own rate and those 3 × off."""
    own = config_lib.flatten(config)[RATE[config.method]]
    return RATES.get(config.model.name, {}).get(config.method, (own / 3, own, own * 3))


def with_settings(config: ConfigDict, settings: dict[str, Any]) -> ConfigDict:
    """A copy of the config with some settings changed; text takes the type of the setting.

    Raises:
        ValueError: a setting that does not exist, or a value of the wrong type.
    """
    config, flat = config.copy_and_resolve_references(), config_lib.flatten(config)
    for name, value in settings.items():
        if name not in flat:
            raise ValueError(f"unknown setting config.{name}: {config_lib.nearest(name, flat)}")
        kind = type(flat[name])
        try:
            if isinstance(value, str):
                value = BOOLEANS[value.lower()] if kind is bool else kind(value)
            config.update_from_flattened_dict({name: value})
        except (LookupError, ValueError, TypeError):
            wanted = "True or False" if kind is bool else f"a {kind.__name__}"
            raise ValueError(f"config.{name}={value!r}: takes {wanted}") from None
    return config


def checked(config: ConfigDict, settings: dict[str, Any]) -> ConfigDict:
    """The same, and every value makes sense for the method.

    Raises:
        ValueError: naming what does not.
    """
    config = with_settings(config, settings)
    config_lib.validate(config)
    methods.check(config)
    return config
