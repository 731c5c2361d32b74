"""Configs: every file builds, bad values are refused, options after the colon."""

import math
from pathlib import Path

import pytest
from ml_collections import config_flags

from configs import common
from deltamask_jax import config as config_lib

DEFAULTS = {"dataset": "tfds:cifar10", "alpha": 10.0, "smoke": False}


def test_every_setting_with_a_range_or_choice_exists_and_the_default_is_valid():
    flat = config_lib.flatten(common.get_config())
    assert set(config_lib.RANGES) | set(config_lib.CHOICES) <= set(flat)
    config_lib.validate(common.get_config())


def test_every_number_has_a_range():
    flat = config_lib.flatten(common.get_config())
    numbers = {name for name, value in flat.items() if type(value) in (int, float)}
    assert numbers - set(config_lib.RANGES) <= {
        "codec.bits",
        "codec.arity",
        "codec.fpr",
    }  # the codec checks its own


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_file_is_valid_with_and_without_smoke(path):
    for options in ("", ":smoke") if path.stem not in ("common", "quickstart") else ("",):
        # Loaded the way the command line does.
        config_lib.validate(
            config_flags.config_flags.ConfigFileFlagParser("config").parse(f"{path}{options}")
        )


@pytest.mark.parametrize(
    "name, value", [("rounds", 0), ("participation", 1.5), ("participation", math.nan), ("seed", -1)]
)
def test_values_out_of_range_are_refused(name, value):
    config = common.get_config()
    config[name] = value
    with pytest.raises(ValueError, match=f"config.{name}=.*must be"):
        config_lib.validate(config)


def test_unknown_choice_names_the_nearest():
    config = common.get_config()
    config.mask.uniforms = "sharde"
    with pytest.raises(ValueError, match="config.mask.uniforms 'sharde'; did you mean 'shared'"):
        config_lib.validate(config)


def test_a_misspelt_cache_is_not_taken_for_a_folder():
    config = common.get_config()
    config.prefix_cache = "memroy"
    with pytest.raises(ValueError, match="must be 'memory', 'off' or a folder"):
        config_lib.validate(config)


def test_options():
    options = config_lib.parse_options("dataset=idx:/a/b,alpha=0.1,smoke", DEFAULTS)
    assert options == {"dataset": "idx:/a/b", "alpha": 0.1, "smoke": True}
    assert config_lib.parse_options("", DEFAULTS) == DEFAULTS


@pytest.mark.parametrize(
    "text, message",
    [
        ("datset=x", "did you mean 'dataset'"),
        ("alpha=x", "takes a float"),
        ("alpha", "takes a float"),
        ("dataset", "needs a value"),
        ("smoke=3", "is a flag"),
    ],
)
def test_bad_options_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        config_lib.parse_options(text, DEFAULTS)


def test_nearest_finds_a_misplaced_key():
    names = config_lib.flatten(common.get_config())
    assert "partition.alpha" in config_lib.nearest("alpha", names)
    assert "rounds" in config_lib.nearest("round", names)
