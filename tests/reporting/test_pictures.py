"""The picture a run leaves."""

import numpy as np
from PIL import Image

from deltamask_jax.reporting import pictures


def test_curves_are_drawn(tmp_path):
    record = {"uplink_bytes": 1000, "downlink_bytes": 9000}
    records = [{**record, "round": r, "accuracy": a} for r, a in enumerate([0.5, None, 0.8])]
    pictures.draw_curves(tmp_path / "c.png", records, 0.6, "deltamask, csv:/d/cost$_and_$.csv")  # no formula
    assert np.asarray(Image.open(tmp_path / "c.png")).std() > 10  # not blank
