"""Configs: every file builds, bad values are refused, options after the colon."""

import functools
import math
import re
from pathlib import Path

import pytest
from ml_collections import ConfigDict, config_flags

from configs import common
from deltamask_jax import config as config_lib
from deltamask_jax import experiment

DEFAULTS = {"dataset": "tfds:cifar10", "alpha": 10.0, "smoke": False}


def test_every_setting_with_a_range_or_choice_exists_and_the_default_is_valid():
    flat = config_lib.flatten(common.get_config())
    assert set(config_lib.RANGES) | set(config_lib.CHOICES) <= set(flat)
    config_lib.validate(common.get_config())


def test_every_setting_is_one_line_with_its_comment():
    """Nothing that the formatter can tear apart, or that a reader could take for the next setting's."""
    source = Path("configs/common.py").read_text().splitlines()
    settings = [line.strip() for line in source if re.match(r"    config\.[\w.]+ = ", line)]
    settings = [line for line in settings if not line.endswith("= ConfigDict()")]
    assert {re.match(r"config\.([\w.]+)", line)[1] for line in settings} == {*FLAT, "codec.clients"}
    for line in settings:
        assert re.search(r"\S  # \S", line) and not line.endswith("("), line
    above = [after for line, after in zip(source, source[1:], strict=False) if line.strip().startswith("#")]
    assert all(line.endswith("= ConfigDict()") or line.strip().startswith("#") for line in above), above


def test_every_number_has_a_range():
    flat = config_lib.flatten(common.get_config())
    assert {name for name, value in flat.items() if type(value) in (int, float)} == set(config_lib.RANGES)


@pytest.mark.parametrize("path", sorted(Path("configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_file_is_valid_with_and_without_smoke(path):
    without = ("common", "digits", "quickstart", "minilm_l6")
    for options in ("", ":smoke") if path.stem not in without else ("",):
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
    options = config_lib.parse_options("dataset=hf:a/b,c,smoke,alpha=0.1", DEFAULTS)  # NAME,CONFIG
    assert options == {"dataset": "hf:a/b,c", "alpha": 0.1, "smoke": True}


@pytest.mark.parametrize(
    "text, message",
    [
        ("datset=x", "did you mean 'dataset'"),
        ("alpha=x", "takes a float"),
        ("alpha", "takes a float"),
        ("dataset", "needs a value"),
        ("smoke=3", "is a flag"),
        ("alpha=1,hf", "unknown option 'hf'"),
    ],
)
def test_bad_options_are_explained(text, message):
    with pytest.raises(ValueError, match=message):
        config_lib.parse_options(text, DEFAULTS)


def test_nearest_finds_a_misplaced_key():
    names = config_lib.flatten(common.get_config())
    assert "partition.alpha" in config_lib.nearest("alpha", names)
    assert "rounds" in config_lib.nearest("round", names)


FLAT = config_lib.flatten(common.get_config())
WRONG = {
    bool: [0, 1, "True", None],
    int: [None, "3", 2.0, True],
    float: [None, "0.5", True],
    str: [None, 3, b"x"],
}


def made_with(name, value):
    """A config whose types nothing has checked, as from a dict of the user's own."""
    settings = common.get_config().to_dict()
    *sections, last = name.split(".")
    functools.reduce(dict.__getitem__, sections, settings)[last] = value
    return ConfigDict(settings)


@pytest.mark.parametrize("name", FLAT)
def test_a_value_of_another_type_is_refused(name):
    for value in WRONG[type(FLAT[name])]:
        config = made_with(name, value)
        refusal = f"config.{name}={value!r} ({type(value).__name__}): must be"
        with pytest.raises(ValueError, match=re.escape(refusal)):
            config_lib.validate(config)


@pytest.mark.parametrize("name", [name for name, value in FLAT.items() if type(value) is float])
def test_every_float_refuses_what_json_cannot_say_and_takes_whole_numbers(name):
    for value in (math.nan, math.inf, -math.inf):
        config = common.get_config()
        config.update_from_flattened_dict({name: value})
        with pytest.raises(ValueError, match=f"^config.{name}={value}: must be"):
            config_lib.validate(config)
    low, high = config_lib.RANGES[name]
    if low <= 1 <= high:
        config_lib.validate(made_with(name, 1))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda config: config.update(clientz=5), "unknown setting config.clientz: did you mean 'clients'"),
        (lambda config: config.mask.update(kapa=0.5), "config.mask.kapa: did you mean 'mask.kappa'"),
        (lambda config: config.update(alpha=1.0), "config.alpha: did you mean 'partition.alpha'"),
        (lambda config: config.mask.__delattr__("kappa"), "config.mask.kappa is missing: begin with"),
        (lambda config: config.__delattr__("eden"), "config.eden is missing"),
        (lambda config: config.codec.__setattr__("clients", None), "config.codec.clients"),
    ],
)
def test_settings_are_those_of_common_however_they_came(change, message, tmp_path):
    config = ConfigDict(common.get_config().to_dict(), type_safe=False)
    change(config)
    with pytest.raises(ValueError, match=re.escape(message)):
        config_lib.validate(config)
    with pytest.raises(ValueError, match=re.escape(message)):
        experiment.run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_table_of_clients_has_names_of_its_own():
    config = common.get_config()
    config.codec.clients = {"0-9": {"bits": 16}, "12": {"name": "rice"}}
    config_lib.validate(config)


@pytest.mark.parametrize("clients", [{"0-9": 5}, {"0-9": {"bits": None}}, {"3": {"name": 8}}])
def test_what_differs_for_some_clients_has_the_codecs_types(clients):
    config = common.get_config()
    config.codec.clients = clients
    with pytest.raises(ValueError, match=r"config.codec.clients\['(0-9|3)'\].*must be"):
        config_lib.validate(config)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"bits": 64}, "bits=64: must be at most 32"),
        ({"name": "bloom", "fpr": 2.0}, "fpr=2.0: must be at most 1"),
        ({"fpr": math.nan}, "fpr=nan: must be a number"),
        ({"capacity": -3}, "capacity=-3: must be at least 0"),
        ({"clients": {}}, "clients: a client has no clients of its own"),
    ],
)
def test_what_differs_for_some_clients_has_the_codecs_ranges(changes, message):
    config = common.get_config()
    config.codec.clients = {"0": changes}
    with pytest.raises(ValueError, match=re.escape(f"config.codec.clients['0'].{message}")):
        config_lib.validate(config)


def test_an_attack_of_nobody_is_refused():
    config = common.get_config()
    config.attack.kind = "all_flip"
    with pytest.raises(ValueError, match=r"attack.kind=.all_flip.: nobody attacks, raise config"):
        config_lib.validate(config)
    config.attack.share = 0.1
    config_lib.validate(config)
