import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from deltamask_jax import models, pretrained
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.models.vit import ViTConfig

MODEL = models.from_architecture(
    ViTConfig("vit", width=8, depth=2, heads=2, mlp=12, patch=4, image_size=8), trained_blocks=1
)
BASE = MODEL.init(jax.random.key(0))
INDEX = FlatIndex.create(BASE, MODEL.masked)
MASK = np.random.default_rng(0).random(INDEX.d) < 0.9
HEAD = {"kernel": np.ones((8, 3), np.float32), "bias": np.arange(3, dtype=np.float32)}


def test_mask_and_head_come_back_on_their_base(tmp_path):
    size = pretrained.export_compact(tmp_path / "a.safetensors", MODEL, BASE, MASK, HEAD)
    assert size < 8 * INDEX.d  # far below the float32 kernels
    params, head = pretrained.load_compact(tmp_path / "a.safetensors", BASE)
    masked = INDEX.ravel(INDEX.kernels(params))
    np.testing.assert_array_equal(masked, INDEX.ravel(INDEX.kernels(BASE)) * MASK)
    np.testing.assert_array_equal(params["embedding"]["kernel"], BASE["embedding"]["kernel"])
    for name in HEAD:
        np.testing.assert_array_equal(head[name], HEAD[name])


def test_another_base_is_refused(tmp_path):
    pretrained.export_compact(tmp_path / "a.safetensors", MODEL, BASE, MASK, HEAD)
    other = jax.tree.map(lambda x: x, BASE)
    bias = other["embedding"]["bias"]
    other["embedding"]["bias"] = bias.at[0].add(1e-6)  # frozen, and hardly changed
    with pytest.raises(ValueError, match="load that checkpoint"):
        pretrained.load_compact(tmp_path / "a.safetensors", other)


def test_the_hash_is_a_published_constant():
    """Files written by an earlier version must keep their base."""
    params = {"b": {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}, "a": np.zeros(1)}
    expected = "79b29d253799454673576a3bfac541151b390e828fc330fc33b874c49f69e0a7"
    assert pretrained.params_hash(params) == expected


def test_foreign_damaged_and_misfitting_masks_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=f"masks {INDEX.d} weights"):
        pretrained.export_compact(path, MODEL, BASE, MASK[:-1], HEAD)
    save_file({"mask": np.zeros(3, np.uint8)}, path)
    with pytest.raises(ValueError, match="no compact mask file"):
        pretrained.load_compact(path, BASE)
    pretrained.export_compact(path, MODEL, BASE, MASK, HEAD)
    content = bytearray(path.read_bytes())
    content[-10] ^= 255
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        pretrained.load_compact(path, BASE)
    path.write_bytes(content[:-20])
    with pytest.raises(ValueError, match="no readable safetensors"):
        pretrained.load_compact(path, BASE)
