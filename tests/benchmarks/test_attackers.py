"""The attack table: which runs it has."""

import itertools

from benchmarks import attackers


def test_without_an_attack_every_defence_is_measured_no_defence_too():
    honest = {(uniforms, defence) for uniforms, attack, _, defence in attackers.runs() if attack == "none"}
    assert honest == set(itertools.product(attackers.UNIFORMS, attackers.DEFENCES))
    assert "none" in attackers.DEFENCES and len(set(attackers.runs())) == len(attackers.runs())
