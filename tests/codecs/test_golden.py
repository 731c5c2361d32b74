"""Payloads of format version 1, kept as files: a change of the format cannot happen by accident.

If a change is meant, raise `envelope.VERSION`, describe it in docs/wire-format.md, and rewrite the files:

    python -m tests.codecs.test_golden
"""

import zlib
from pathlib import Path

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.public_random import CANDIDATES, stream_key
from tests.codecs.cases import KEPT, Given, assert_valid, of_type

GOLDEN = Path(__file__).parent / "golden"
MASK_CHECKSUM = 0xE52A906  # of what random_coding.bin decodes to

# How many bytes do not depend on a compressor's release, or on how a machine rounds; what the others hold is
# checked by decoding them.
SURE = {"bfuse": 44, "xor": 44} | dict.fromkeys(("dense", "rounded", "eden", "random_coding"), 32)


def file_of(settings: dict) -> Path:
    codec = codecs.get(**settings)
    options = [f"{option}{value}" for option, value in settings.items() if option != "name"]
    stem = {
        "positions": "-".join([settings["name"], *options]),
        "values": f"values-{codec.name}",
        "theta": settings["name"],
    }[codec.kind]
    return GOLDEN / f"{stem}.bin"


def update(codec: codecs.Codec):
    """Inputs from integer arithmetic alone, so that no generator's future matters."""
    i = np.arange(4000, dtype=np.uint64)
    theta = (i * 2654435761 % 65536).astype(np.uint16)
    if codec.kind == "values":
        x = (theta[:1000].astype(np.float32) - 32768) / 1024
        return of_type(codec, np.abs(x) if codec.exact else x), codecs.Context(
            1000, round=258, client=772, seed=7
        )
    if codec.kind == "theta":
        key = stream_key(5, 3, 1, CANDIDATES)
        context = Given(4000, theta, round=258, client=772, key=key)
        return (theta // 2 + i % 5 * 6000).astype(np.uint16), context
    uniforms = (i * 40503 % 65521).astype(np.uint16)
    close = np.abs(theta.astype(int) - uniforms) < 3000
    positions = np.flatnonzero(close & (i % 3 == 0) | (i % 401 == 7)).astype(np.uint32)
    return positions, Given(4000, theta, ((0, 0),), 258, 772, u=uniforms)


ALL = pytest.mark.parametrize("settings", KEPT, ids=lambda settings: file_of(settings).stem)


@ALL
def test_old_payloads_are_still_read(settings):
    codec = codecs.get(**settings)
    sent, context = update(codec)
    decoded = codec.decode(file_of(settings).read_bytes(), context)
    assert_valid(codec, decoded, context)
    if codec.exact:
        np.testing.assert_array_equal(decoded, sent)
    elif codec.kind == "positions":
        assert np.isin(sent, decoded).all()
        assert len(decoded) < len(sent) + 120
    elif codec.kind == "theta":
        assert zlib.crc32(np.packbits(decoded)) == MASK_CHECKSUM
    else:
        # The rotation is float arithmetic: a value at a cell's border may round the other way elsewhere. The
        # file of `rounded` was rounded at other noise.
        again = codec.decode(codec.encode(sent, context), context)
        assert np.sum((decoded - again) ** 2) <= 0.02 * np.sum(again**2)


@ALL
def test_new_payloads_are_the_same_bytes(settings):
    codec = codecs.get(**settings)
    made, kept = codec.encode(*update(codec)), file_of(settings).read_bytes()
    length = len(kept) if settings.get("container") == "raw" else SURE.get(settings["name"], len(kept))
    assert made[:24] + made[32:length] == kept[:24] + kept[32:length]
    assert len(made) == len(kept) or length < len(kept)


if __name__ == "__main__":
    for settings in KEPT:
        codec = codecs.get(**settings)
        file_of(settings).write_bytes(codec.encode(*update(codec)))
