"""The report's pictures: what is drawn in them."""

import base64
import dataclasses

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes

from deltamask_jax.reporting import figures, table
from tests.reporting.written import a_run


@pytest.mark.parametrize(
    "changes, drawn",
    [
        ({"method": "fedavg"}, True),
        ({"data": "tfds:cifar100"}, False),
        ({"model__name": "glyph_vit"}, False),
        ({"partition__alpha": 0.1}, False),
        ({"clients": 5}, False),
    ],
)
def test_a_linear_probe_is_drawn_where_there_is_one(changes, drawn):
    groups = table.group([a_run("a"), a_run("b", **changes)])
    with matplotlib.rc_context(figures.RC):
        picture = figures._accuracy(groups, None, "round", "")
    assert (b">linear probe<" in base64.b64decode(picture.uri.partition(",")[2])) == drawn


@pytest.mark.parametrize("setting", ["participation", "local_epochs", "batch_size", "head__epochs"])
def test_probes_that_were_trained_otherwise_are_not_averaged(setting):
    value = {"participation": 0.5, "local_epochs": 3, "batch_size": 3, "head__epochs": 3}[setting]
    usual, other = a_run("a").config, a_run("b", **{setting: value}).config
    probes = [(other, 0.2), (usual, 0.6), (usual, 0.8), (usual, None)]
    assert figures.usual_probe(probes) == pytest.approx(0.7)
    assert figures.usual_probe([(usual, None)]) is None


def test_rounds_of_nobody_are_empty_columns():
    rows = figures._by_round([2, 3, 6], [[1, 2], [3, 4], [5, 6]])
    np.testing.assert_array_equal(rows[[0, 1, 4]], [[1, 2], [3, 4], [5, 6]])
    assert rows.shape == (5, 2) and np.isnan(rows[2:4]).all()
    lines = [
        {"round": r, "theta_histogram": {"a/kernel": [r] * 16}, "flip_rate_by_layer": {"a/kernel": 0.1}}
        for r in (1, 2, 5)
    ]
    pictures = figures.of_run(dataclasses.replace(a_run("a"), diagnostics=lines))
    assert len(pictures) == 3 and "after round 5" in pictures[2].caption


def test_the_probe_that_is_drawn_is_that_of_most_runs(monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **style: drawn.append(float(y)))
    one = dataclasses.replace(a_run("c", rounds=1), summary={"linear_probe_accuracy": 0.1})
    figures._accuracy(table.group([a_run("a"), a_run("b", method="fedavg"), one]), None, "round", "")
    assert drawn == [60.0]
