"""Payloads of format version 1, kept as files: a change of the format cannot happen by accident.

If a change is meant, raise `envelope.VERSION`, describe it in docs/wire-format.md, and rewrite the files:

    python -m tests.codecs.test_golden
"""

from pathlib import Path

import numpy as np
import pytest

from deltamask_jax import codecs
from tests.codecs.cases import SETTINGS

GOLDEN = Path(__file__).parent / "golden"


def file_of(settings: dict) -> Path:
    options = [f"{option}{value}" for option, value in settings.items() if option != "name"]
    return GOLDEN / ("-".join([settings["name"], *options]) + ".bin")


def update():
    """Inputs from integer arithmetic alone, so that no generator's future matters."""
    i = np.arange(4000, dtype=np.uint64)
    theta = (i * 2654435761 % 65536).astype(np.uint16)
    uniforms = (i * 40503 % 65521).astype(np.uint16)
    close = np.abs(theta.astype(int) - uniforms) < 3000
    positions = np.flatnonzero(close & (i % 3 == 0) | (i % 401 == 7)).astype(np.uint32)
    return positions, codecs.Context(4000, theta, uniforms, round=258, client=772)


ALL = pytest.mark.parametrize("settings", SETTINGS, ids=lambda settings: file_of(settings).stem)


@ALL
def test_old_payloads_are_still_read(settings):
    positions, context = update()
    codec = codecs.get(**settings)
    decoded = codec.decode(file_of(settings).read_bytes(), context)
    if codec.exact:
        np.testing.assert_array_equal(decoded, positions)
    else:
        assert np.isin(positions, decoded).all()
        assert len(decoded) < len(positions) + 120


@ALL
def test_new_payloads_are_the_same_bytes(settings):
    # Deflate and zstd may compress differently in another release; what they hold is checked above.
    compressed = settings["name"] in ("bfuse", "xor") and settings.get("container", "png") != "raw"
    made = codecs.get(**settings).encode(*update())
    kept = file_of(settings).read_bytes()
    length = 44 if compressed else len(kept)
    assert made[:24] + made[32:length] == kept[:24] + kept[32:length]


if __name__ == "__main__":
    for settings in SETTINGS:
        file_of(settings).write_bytes(codecs.get(**settings).encode(*update()))
