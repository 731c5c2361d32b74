"""Building filters: no false negatives, failing seeds, and without the C library."""

import runpy
import sys

import numpy as np
import pytest

from deltamask_jax.codecs import filter_builder, fingerprints
from tests.codecs.test_fingerprints import c_contains, random_positions


@pytest.mark.parametrize("arity", [3, 4])
@pytest.mark.parametrize("bits", [8, 32])
def test_own_builder_has_no_false_negatives(bits, arity):
    rng = np.random.default_rng(arity)
    for _ in range(1000):
        n = int(rng.integers(1, 400))
        keys = rng.choice(1 << 20, n, replace=False).astype(np.uint64)
        shape = fingerprints.fuse_geometry(n, arity)
        built = next(
            built
            for attempt in range(filter_builder.ATTEMPTS)
            if (built := filter_builder._populate(keys, bits, shape, attempt * 12345))
        )
        filled = fingerprints.Filter(shape, *built)
        assert fingerprints.contains(filled, keys.astype(np.uint32)).all()


def test_failed_seeds_are_retried_and_given_up(monkeypatch):
    positions = random_positions(50, 1000)
    shape = fingerprints.fuse_geometry(50)
    real, failures = filter_builder._populate_c, iter([None, None])
    monkeypatch.setattr(filter_builder, "_populate_c", lambda *args: next(failures, 0) or real(*args))
    built = filter_builder.build(positions, 8, shape)
    assert fingerprints.contains(built, positions).all()
    monkeypatch.setattr(filter_builder, "_populate_c", lambda *args: None)
    with pytest.raises(RuntimeError, match="are keys unique"):
        filter_builder.build(positions, 8, shape)


def test_duplicate_keys_do_not_hang():
    with pytest.raises(RuntimeError, match="unique"):
        filter_builder.build(np.zeros(9, np.uint32), 32, fingerprints.fuse_geometry(9))


def test_four_slots_need_fewer_bits():
    shape = fingerprints.fuse_geometry(1_000_000, 4)
    assert 8 * shape.array_length / 1e6 <= 8.7
    positions = random_positions(60_000, 1 << 25)
    built = filter_builder.build(positions, 8, fingerprints.fuse_geometry(60_000, 4))
    assert fingerprints.contains(built, positions).all()


def test_without_the_c_library_numpy_builds(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "pyfusefilter._xorfilter", None)  # importing it fails
    alone = runpy.run_path(filter_builder.__file__)
    assert "filters are built in NumPy" in caplog.text
    positions = random_positions(1000, 50_000)
    built = alone["build"](positions, 8, fingerprints.fuse_geometry(1000))
    assert c_contains(built, positions).all()
