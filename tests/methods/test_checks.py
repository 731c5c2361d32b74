"""Which settings a method refuses before anything slow happens, and whether it trains the prefix."""

import pytest

from deltamask_jax import methods
from tests.conftest import tiny_config


def test_training_the_whole_backbone_leaves_no_prefix_to_cache():
    config = tiny_config(method="eden", fedavg__trained="backbone")
    assert methods.trains_prefix(config)
    config.method = "deltamask"  # whose weights are frozen anyway
    assert not methods.trains_prefix(config)


def test_thinning_and_holding_need_votes_that_add_up():
    regime = {"method": "deltamask", "mask__uniforms": "per_client", "mask__aggregator": "control_variate"}
    methods.check(tiny_config(**regime, mask__ranking="thin", downlink__hold=2))
    with pytest.raises(ValueError, match="ranking='thin' .*needs mask.aggregator='control_variate'"):
        methods.check(tiny_config(mask__ranking="thin"))
    for changes in ({}, regime | {"robust__aggregator": "clip"}, regime | {"method": "fedpm"}):
        with pytest.raises(ValueError, match="hold=2 holds back whole votes: it needs one of"):
            methods.check(tiny_config(**changes, downlink__hold=2))
    for changes in (
        {"downlink__hold": 7},
        {"mask__ranking": "thin", "mask__kappa": 0.5, "downlink__hold": 4},
    ):
        with pytest.raises(ValueError, match="hold=. is never reached by rounds of [36] votes"):
            methods.check(tiny_config(**regime, **{"mask__kappa_final": 0.5} | changes, clients=6))


def test_more_voters_than_are_counted_are_refused():
    methods.check(tiny_config(clients=65_535))
    methods.check(tiny_config(method="fedavg", clients=65_536))
    with pytest.raises(ValueError, match="a round asks 65,536 clients, .* up to 65,535; lower it"):
        methods.check(tiny_config(clients=65_536))


def test_what_is_held_back_cannot_be_relayed():
    regime = {"mask__aggregator": "control_variate", "downlink__hold": 2}
    methods.check(tiny_config(**regime, downlink__news="tally"))
    with pytest.raises(ValueError, match="news='relay' .*downlink.hold=2 holds some of it back"):
        methods.check(tiny_config(**regime, downlink__news="relay"))


@pytest.mark.parametrize("name", ["fedmask", "klms", "fedavg"])
def test_a_ranking_is_nothing_to_methods_that_rank_no_flips(name):
    methods.check(tiny_config(method=name, mask__aggregator="beta", mask__ranking="thin"))


@pytest.mark.parametrize("name", ["fedmask", "klms"])
def test_methods_without_public_uniforms_refuse_the_control_variate(name):
    with pytest.raises(ValueError, match="use 'beta' or 'running'"):
        methods.check(tiny_config(method=name, mask__aggregator="control_variate"))
    methods.check(tiny_config(method=name, mask__aggregator="running"))


@pytest.mark.parametrize("method", ["linear_probe", "fedcof", "feedsign", "peft"])
def test_a_head_that_is_all_that_is_trained_must_be_trained(method):
    changes = {"rounds": 1, "head__init": "he"} if method == "fedcof" else {}
    with pytest.raises(ValueError, match="head.trained=False is not for method"):
        methods.check(tiny_config(method=method, head__trained=False, peft__kind="head", **changes))
    methods.check(tiny_config(head__trained=False))  # masks never move it


def test_lies_and_robust_aggregators_are_refused_for_methods_without_flips():
    for change in (
        {"attack__kind": "all_flip"},
        {"robust__aggregator": "median"},
        {"robust__aggregator": "clip"},
        {"robust__max_flip_rate": 0.1},
    ):
        with pytest.raises(ValueError, match="is about flips"):
            methods.check(tiny_config(method="fedavg", **change))


@pytest.mark.parametrize(
    "changes, said",
    [({}, "needs mask.aggregator='control_variate'"), ({"rounds": 2}, "must be fewer than rounds=2")],
)
def test_hard_rounds_that_would_not_be_hard_are_refused(changes, said):
    regime = {"mask__aggregator": "control_variate" if changes else "beta", "mask__hard_rounds": 2}
    with pytest.raises(ValueError, match=said):
        methods.check(tiny_config(**regime | changes))
    methods.check(tiny_config(method="fedavg", **regime))
