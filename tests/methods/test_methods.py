"""The table of methods: what a name gives, and what a wrong one is told."""

import pytest

from deltamask_jax import methods
from tests.conftest import tiny_config


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_name_gives_the_method_of_that_name(name, problem):
    changes = {"rounds": 1, "head__init": "he"} if name == "fedcof" else {}
    config = tiny_config(method=name, mask__aggregator="beta", peft__kind="head", **changes)
    methods.check(config)
    assert methods.build(config, problem.task).name == name


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(ValueError, match="unknown config.method 'deltamsk'; did you mean 'deltamask'"):
        methods.check(tiny_config(method="deltamsk"))


def test_a_method_of_ones_own_is_one_more_line(monkeypatch):
    monkeypatch.setitem(methods.METHODS, "mine", lambda config, task: (config.method, task))
    config = tiny_config(method="mine")
    methods.check(config)
    assert methods.build(config, None) == ("mine", None)
