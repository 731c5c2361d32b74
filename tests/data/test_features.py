"""The frozen-prefix cache: right values, computed once, never a wrong or half-written file."""

import dataclasses
import io
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax.data import features, preprocessing
from deltamask_jax.data.dataset import LazyImages
from deltamask_jax.data.features import fingerprint, prefix_features

SMALL = preprocessing.GLYPH.at(8)
IMAGES = np.random.default_rng(0).integers(0, 256, (11, 6, 6), dtype=np.uint8)
WEIGHTS = np.random.default_rng(1).normal(size=(3, 5)).astype(np.float32)


class Prefix:
    """A tiny prefix that counts how often it is traced and how often it runs."""

    def __init__(self):
        self.traced, self.ran = 0, 0

    def __call__(self, pixels: jax.Array) -> jax.Array:
        if isinstance(pixels, jax.core.Tracer):
            self.traced += 1
        jax.debug.callback(self._count)
        return pixels.mean(axis=2) @ WEIGHTS  # [n, size, 5]

    def _count(self):
        self.ran += 1


def _direct() -> np.ndarray:
    return preprocessing.apply(IMAGES, SMALL).mean(axis=2) @ WEIGHTS


@pytest.mark.parametrize("chunk", [1, 4, 11, 64])
def test_equals_direct_computation(chunk):
    got = prefix_features(Prefix(), IMAGES, SMALL, chunk=chunk)
    assert got.shape == (11, 8, 5) and got.dtype == np.float32
    np.testing.assert_allclose(got, _direct(), rtol=1e-5, atol=1e-6)


def test_one_compilation_for_all_chunks():
    prefix = Prefix()
    compiled = jax.jit(prefix)
    prefix_features(compiled, IMAGES, SMALL, chunk=4)  # 4, 4 and a padded 3
    prefix_features(compiled, IMAGES[:7], SMALL, chunk=4)
    jax.effects_barrier()
    assert prefix.ran == 5
    assert compiled._cache_size() == 1


def test_lazy_images_of_several_sizes():
    images = [IMAGES[0], IMAGES[1, :4], IMAGES[2]]
    lazy = LazyImages(lambda positions: [images[i] for i in positions], np.arange(3), "three")
    got = prefix_features(Prefix(), lazy, SMALL, chunk=2)
    np.testing.assert_allclose(got[0], _direct()[0], rtol=1e-5, atol=1e-6)
    assert got.shape == (3, 8, 5)


def test_no_images():
    assert prefix_features(Prefix(), IMAGES[:0], SMALL, chunk=4).shape == (0, 8, 5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stored_and_reused(tmp_path, dtype):
    prefix = Prefix()

    def cached(key="k", preprocess=SMALL, dtype=dtype, images=IMAGES):
        return prefix_features(
            prefix, images, preprocess, key=key, directory=tmp_path / "new", chunk=4, dtype=dtype
        )

    def runs() -> int:
        jax.effects_barrier()
        return prefix.ran

    first = cached()
    assert runs() == 3 and isinstance(first, np.memmap) and first.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(first.astype(np.float32), _direct(), atol=1e-6 + 0.02 * (dtype[0] == "b"))
    np.testing.assert_array_equal(cached(), first)
    assert runs() == 3, "the second call must not compute"
    cached(key="other weights")
    assert runs() == 6
    cached(preprocess=dataclasses.replace(SMALL, filter="bicubic"))
    assert runs() == 9
    cached(dtype="bfloat16" if dtype == "float32" else "float32")
    assert runs() == 12
    cached(images=IMAGES[:4])
    assert runs() == 13
    assert len(list((tmp_path / "new").iterdir())) == 5  # and no temporary file


def test_a_damaged_file_is_computed_again(tmp_path):
    prefix = Prefix()

    def cached():
        return prefix_features(prefix, IMAGES, SMALL, key="k", directory=tmp_path, chunk=64)

    want = np.array(cached())
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (whole[:-1], whole[:40], b"", b"not an array"):
        path.write_bytes(damaged)
        np.testing.assert_array_equal(cached(), want)
        assert path.read_bytes() == whole
    jax.effects_barrier()
    assert prefix.ran == 5


def _npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def _npy(array) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize(
    "other",
    [
        _npy(np.zeros((2, 8, 5), np.float32)),
        _npy(np.zeros((11, 8, 5))),
        _npy(np.zeros((11, 8, 5), np.int32)),
        _npz(a=np.zeros(3)),
    ],
    ids=["rows", "doubles", "integers", "npz"],
)
def test_a_file_of_something_else_is_computed_again(tmp_path, other):
    def cached():
        return prefix_features(Prefix(), IMAGES, SMALL, key="k", directory=tmp_path, chunk=64)

    want = np.array(cached())
    (path,) = tmp_path.iterdir()
    path.write_bytes(other)
    got = cached()
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, want)


def test_few_lazy_images_are_decoded_at_once(monkeypatch):
    read = []

    def decode(positions):
        read.append(len(positions))
        return [IMAGES[i] for i in positions]

    monkeypatch.setattr(features, "_DECODED", 1)
    monkeypatch.setattr(features.threads, "count", lambda: 2)
    got = prefix_features(Prefix(), LazyImages(decode, np.arange(11), "eleven"), SMALL, chunk=5)
    np.testing.assert_array_equal(got, prefix_features(Prefix(), IMAGES, SMALL, chunk=5))
    assert max(read) == 2 and sum(read) == 11


def test_a_file_that_cannot_be_read_back_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "_stored", lambda path, shape, dtype: None)
    with pytest.raises(OSError, match="cannot be read back"):
        prefix_features(Prefix(), IMAGES, SMALL, key="k", directory=tmp_path, chunk=64)


def test_an_interrupted_run_leaves_nothing(tmp_path):
    def read(positions):
        if 8 in positions:
            raise KeyboardInterrupt
        return [IMAGES[i] for i in positions]

    lazy = LazyImages(read, np.arange(len(IMAGES)), "breaks")
    with pytest.raises(KeyboardInterrupt):
        prefix_features(Prefix(), lazy, SMALL, key="k", directory=tmp_path, chunk=4)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_refuses_what_memory_or_disk_cannot_hold_before_computing(tmp_path, monkeypatch, where):
    directory, prefix, size = (tmp_path if where == "disk" else None), Prefix(), len(IMAGES) * 8 * 5 * 4

    def with_free(memory):
        monkeypatch.setattr(features.devices, "available_ram", lambda: memory)
        monkeypatch.setattr(features.shutil, "disk_usage", lambda path: SimpleNamespace(free=memory))
        return prefix_features(prefix, IMAGES, SMALL, key="k", directory=directory, chunk=4)

    with pytest.raises(OSError, match=f"{where}.*config.prefix_cache"):
        with_free(size - 1)
    jax.effects_barrier()
    assert prefix.ran == 0 and not list(tmp_path.iterdir())
    assert with_free(size).nbytes == size


def test_refuses_a_directory_without_a_key(tmp_path):
    with pytest.raises(ValueError, match="fingerprint"):
        prefix_features(Prefix(), IMAGES, SMALL, directory=tmp_path, chunk=4)
    with pytest.raises(ValueError, match="chunk"):
        prefix_features(Prefix(), IMAGES, SMALL, chunk=0)


def test_fingerprint_sees_every_part():
    lazy = LazyImages(list, np.arange(3), "source")
    parts = [
        WEIGHTS,
        jnp.asarray(WEIGHTS, jnp.bfloat16),
        WEIGHTS.T,
        WEIGHTS.reshape(5, 3),
        WEIGHTS.view(np.int32),
        WEIGHTS + np.eye(3, 5, dtype=np.float32) * 1e-6,
        {"a": WEIGHTS},
        {"b": WEIGHTS},
        [WEIGHTS],
        lazy,
        lazy.take(np.array([0, 2])),
        LazyImages(list, np.arange(3), "other source"),
        SMALL,
        SMALL.at(9),
        "1",
        1,
        1.0,
        True,
        None,
        ["ab", "c"],
        ["a", "bc"],
        [["a"], "bc"],
        [1, 23],
        [12, 3],
    ]
    assert len({fingerprint(part) for part in parts}) == len(parts)
    assert fingerprint({"x": 1, "y": 2}) == fingerprint({"y": 2, "x": 1})
    assert fingerprint(WEIGHTS.T) == fingerprint(np.ascontiguousarray(WEIGHTS.T))
    assert fingerprint(jnp.asarray(WEIGHTS)) == fingerprint(WEIGHTS)
    with pytest.raises(TypeError, match="function"):
        fingerprint(len)
