"""Settings of methods: how they get into a config, and that all of them exist."""

import pytest
import tuning

from deltamask_jax import methods
from tests.conftest import tiny_config


def test_every_need_and_rate_is_one_of_a_method():
    assert {*tuning.NEEDS, *tuning.RATE, *tuning.RATES["glyph_vit"]} <= methods.METHODS.keys()
    for method, settings in tuning.NEEDS.items():
        tuning.with_settings(tiny_config(method=method), settings)


def test_text_takes_the_type_of_the_setting_and_the_config_stays_as_it_was():
    config = tiny_config()
    changed = tuning.with_settings(config, {"rounds": "7", "mask.kappa": "0.5", "tensorboard": "true"})
    assert (changed.rounds, changed.mask.kappa, changed.tensorboard) == (7, 0.5, True)
    assert (config.rounds, config.tensorboard) == (2, False)
    for settings, message in (
        ({"mask.kapa": 1.0}, "did you mean 'mask.kappa'"),
        ({"rounds": "many"}, "config.rounds='many': takes a int"),
        ({"tensorboard": "yes"}, "config.tensorboard='yes': takes True or False"),
    ):
        with pytest.raises(ValueError, match=message):
            tuning.with_settings(config, settings)
    with pytest.raises(ValueError, match="config.rounds=0"):
        tuning.checked(config, {"rounds": 0})


@pytest.mark.parametrize("text, value", [("true", True), ("True", True), ("False", False), ("FALSE", False)])
def test_a_switch_is_written_in_any_case(text, value):
    config = tiny_config(head__trained=not value)
    assert tuning.with_settings(config, {"head.trained": text}).head.trained is value
