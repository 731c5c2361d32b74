"""The report's pictures: what is drawn in them."""

import base64
import dataclasses

import matplotlib
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


def test_the_probe_that_is_drawn_is_that_of_most_runs(monkeypatch):
    drawn = []
    monkeypatch.setattr(Axes, "axhline", lambda self, y, **style: drawn.append(float(y)))
    one = dataclasses.replace(a_run("c", rounds=1), summary={"linear_probe_accuracy": 0.1})
    figures._accuracy(table.group([a_run("a"), a_run("b", method="fedavg"), one]), None, "round", "")
    assert drawn == [60.0]
