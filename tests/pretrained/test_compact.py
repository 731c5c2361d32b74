import jax
import numpy as np
import pytest
from safetensors import safe_open
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


def changed(path, tensors=(), metadata=()):
    """Writes a compact file, some of its tensors and metadata replaced, or removed by None."""
    pretrained.export_compact(path, MODEL, BASE, MASK, HEAD)
    with safe_open(path, framework="numpy") as file:
        held = {name: file.get_tensor(name) for name in file.keys()} | dict(tensors)
        about = file.metadata() | dict(metadata)
    held, about = ({k: v for k, v in table.items() if v is not None} for table in (held, about))
    save_file(held, path, metadata=about)


@pytest.mark.parametrize(
    "tensors, metadata, reason",
    [
        ({"mask": None}, {}, "other tensors"),
        ({"more": np.zeros(1, np.float32)}, {}, "other tensors"),
        ({"mask": np.zeros(9, np.float32)}, {}, "other tensors"),
        ({"head/kernel": np.zeros((8, 3), np.float16)}, {}, "other tensors"),
        ({"head/bias": np.zeros(4, np.float32)}, {}, "differ in their classes"),
        ({"head/bias": np.full(3, np.nan, np.float32)}, {}, "NaN or infinite"),
        ({"mask": np.zeros(9, np.uint8)}, {}, "damaged"),
        ({}, {"base_sha256": None}, "lacks base_sha256"),
        ({}, {"masked": None, "d": None}, "lacks masked, d"),
        ({}, {"masked": "("}, "not a regular expression"),
        ({}, {"masked": "none"}, "matches no parameter"),
        ({}, {"masked": "cls"}, f"it masks {INDEX.d} weights, not 8"),
        ({}, {"masked": "cls", "d": "8"}, "has not 8 bits"),
        ({}, {"masked": "(.|.)*!"}, "names no parameters"),
        ({}, {"masked": "a{99999999999999999999}"}, "names no parameters"),
        ({}, {"masked": "(" * 3000}, "names no parameters"),
        ({}, {"masked": ".*" * 9 + "!"}, "names no parameters"),
        ({}, {"d": "7"}, f"it masks 7 weights, not {INDEX.d}"),
        ({}, {"d": "7" * 9999}, "it masks 777.* weights, not"),
        ({}, {"model": "a\n" * 999, "base_sha256": "0" * 999}, "load that checkpoint"),
    ],
)
def test_what_no_export_writes_is_refused_in_one_line(tensors, metadata, reason, tmp_path):
    changed(tmp_path / "a.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=reason) as error:
        pretrained.load_compact(tmp_path / "a.safetensors", BASE)
    message = str(error.value)
    assert "a.safetensors" in message and message.isprintable() and len(message) < 700


def test_files_of_older_exports_load(tmp_path):
    changed(tmp_path / "a.safetensors", (), {"masked": MODEL.masked})  # the rule, not the names
    params, _ = pretrained.load_compact(tmp_path / "a.safetensors", BASE)
    masked = INDEX.ravel(INDEX.kernels(params))
    np.testing.assert_array_equal(masked, INDEX.ravel(INDEX.kernels(BASE)) * MASK)


def test_a_mask_by_a_rule_of_ones_own_can_be_loaded_again(tmp_path):
    rule = r"(?:.*(encoderblock_1).*){1}/MlpBlock_0/Dense_[01]+/kernel"
    model = models.from_architecture(MODEL.architecture, trained_blocks=1, masked=rule)
    index = FlatIndex.create(BASE, rule)
    mask = np.arange(index.d) % 3 > 0
    pretrained.export_compact(tmp_path / "a.safetensors", model, BASE, mask, HEAD)
    params, _ = pretrained.load_compact(tmp_path / "a.safetensors", BASE)
    np.testing.assert_array_equal(index.ravel(index.kernels(params)), index.ravel(index.kernels(BASE)) * mask)


@pytest.mark.parametrize("head", [{"kernel": np.ones((7, 3))}, {"bias": np.ones(4)}, {"kernel": np.ones(8)}])
def test_a_head_of_other_shapes_is_not_exported(head, tmp_path):
    with pytest.raises(ValueError, match="8 features"):
        pretrained.export_compact(tmp_path / "a.safetensors", MODEL, BASE, MASK, HEAD | head)
    with pytest.raises(ValueError, match="8 features"):
        pretrained.export_huggingface(tmp_path / "b", MODEL, BASE, HEAD | head)
    with pytest.raises(ValueError, match="2 class names"):
        pretrained.export_huggingface(tmp_path / "b", MODEL, BASE, HEAD, class_names=("a", "b"))
    assert not any(tmp_path.iterdir())
