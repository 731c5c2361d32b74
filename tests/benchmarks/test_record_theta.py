"""What the recorder writes is what the codec's benchmark reads, and its flips are those of the round."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.codecs import recorded_flips

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_recorded_round_has_every_clients_flips(tmp_path):
    out = tmp_path / "theta.npz"
    settings = (
        "clients=2",
        "mask.kappa=1.0",
        "mask.kappa_final=1.0",
        "train_examples=40",
        "test_examples=20",
        "head.epochs=1",
        "local_epochs=1",
        "model.trained_blocks=1",
    )
    command = [sys.executable, "benchmarks/record_theta.py", "--round=1", f"--out={out}"]
    command += [f"--config.{setting}" for setting in settings]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert printed.returncode == 0, printed.stderr
    clients = list(recorded_flips(out))
    assert len(clients) == 2
    share = np.mean([len(positions) / len(theta) for positions, theta, _ in clients])
    assert 0 < share < 0.5
    assert f"{share:.2%} of the weights flipped" in printed.stdout
