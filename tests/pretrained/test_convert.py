"""Formats without a reference library at hand: files made by hand with the published names."""

import json
import tracemalloc
import types
import zipfile

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import serialization, traverse_util
from safetensors.numpy import save, save_file

from deltamask_jax import models, pretrained
from deltamask_jax.models.convmixer import ConvMixerConfig
from deltamask_jax.models.vit import ViTConfig
from deltamask_jax.pretrained import layouts
from tests.models.tiny_text import TINY

VIT = ViTConfig("vit", width=8, depth=2, heads=2, mlp=12, patch=4, image_size=16)
MIXER = ConvMixerConfig(6, 2, kernel=3, patch=3, activation="gelu", image_size=20)

# An AugReg file, as its authors name it (before Flax Linen, 1 and 3 count all layers of a block).
AUGREG = {
    "cls": (1, 1, 8),
    "embedding/kernel": (4, 4, 3, 8),
    "embedding/bias": (8,),
    "head/kernel": (8, 5),
    "head/bias": (5,),
    "pre_logits/kernel": (8, 8),
    "pre_logits/bias": (8,),
    "Transformer/posembed_input/pos_embedding": (1, 17, 8),
    "Transformer/encoder_norm/scale": (8,),
    "Transformer/encoder_norm/bias": (8,),
}
for i in range(2):
    block = f"Transformer/encoderblock_{i}"
    for norm in ("LayerNorm_0", "LayerNorm_2"):
        AUGREG |= {f"{block}/{norm}/scale": (8,), f"{block}/{norm}/bias": (8,)}
    for name in ("query", "key", "value"):
        attention = f"{block}/MultiHeadDotProductAttention_1/{name}"
        AUGREG |= {f"{attention}/kernel": (8, 2, 4), f"{attention}/bias": (2, 4)}
    attention = f"{block}/MultiHeadDotProductAttention_1/out"
    AUGREG |= {f"{attention}/kernel": (2, 4, 8), f"{attention}/bias": (8,)}
    AUGREG |= {
        f"{block}/MlpBlock_3/Dense_0/kernel": (8, 12),
        f"{block}/MlpBlock_3/Dense_0/bias": (12,),
    }
    AUGREG |= {
        f"{block}/MlpBlock_3/Dense_1/kernel": (12, 8),
        f"{block}/MlpBlock_3/Dense_1/bias": (8,),
    }


def arrays(shapes):
    random = np.random.default_rng(0)
    return {key: random.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}


def load(path, model):
    return pretrained.load(types.SimpleNamespace(checkpoint=str(path), revision=""), model)


def flat(params):
    return {k: np.asarray(v) for k, v in traverse_util.flatten_dict(params, sep="/").items()}


def vit(**changes):
    return models.from_architecture(VIT, trained_blocks=1, **changes)


def test_augreg_npz_loads_with_pre_linen_names(tmp_path):
    stored = arrays(AUGREG)
    np.savez(tmp_path / "augreg.npz", **stored)
    loaded = flat(load(tmp_path / "augreg.npz", vit()))
    for ours, theirs in {
        "cls": "cls",
        "Transformer/encoderblock_1/LayerNorm_0/scale": "Transformer/encoderblock_1/LayerNorm_0/scale",
        "Transformer/encoderblock_1/LayerNorm_1/scale": "Transformer/encoderblock_1/LayerNorm_2/scale",
        "Transformer/encoderblock_0/MlpBlock_0/Dense_1/bias": (
            "Transformer/encoderblock_0/MlpBlock_3/Dense_1/bias"
        ),
        "Transformer/encoderblock_1/MultiHeadDotProductAttention_0/out/kernel": (
            "Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel"
        ),
    }.items():
        np.testing.assert_array_equal(loaded[ours], stored[theirs])
    assert len(loaded) == len(stored) - 4  # all but head and pre_logits


def linen():
    names = {"LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0"}
    names |= {"MultiHeadDotProductAttention_1": "MultiHeadDotProductAttention_0"}
    renamed = {}
    for key, array in arrays(AUGREG).items():
        if not key.startswith(("head", "pre_logits")):
            renamed["/".join(names.get(part, part) for part in key.split("/"))] = array
    return renamed


def scenic_tree():
    """Scenic's train state: parameters, head and optimiser state side by side."""
    params = linen() | arrays({"output_projection/kernel": (8, 5), "output_projection/bias": (5,)})
    tree = traverse_util.unflatten_dict(params, sep="/")
    return {"params": tree, "opt_state": {"0": {"mu": tree}}, "global_step": np.int32(7)}


def save_msgpack(path):
    path.write_bytes(serialization.msgpack_serialize(scenic_tree()))


def save_old_scenic(path):
    path.mkdir()
    tree = {"optimizer": {"target": scenic_tree()["params"], "state": {"step": 3}}}
    (path / "checkpoint_9").write_bytes(serialization.msgpack_serialize({"wrong": np.zeros(1)}))
    (path / "checkpoint_10").write_bytes(serialization.msgpack_serialize(tree))


def save_orbax(path):
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(path.absolute(), jax.tree.map(jax.numpy.asarray, scenic_tree()))


@pytest.mark.parametrize("save", [save_msgpack, save_old_scenic, save_orbax])
def test_scenic_and_vision_transformer_trees_load(save, tmp_path):
    save(tmp_path / "tree")
    loaded = flat(load(tmp_path / "tree", vit()))
    assert loaded.keys() == linen().keys()
    for path, array in linen().items():
        np.testing.assert_array_equal(loaded[path], array)


def test_our_own_float16_tree_loads_upcast(tmp_path):
    half = {path: array.astype(np.float16) for path, array in linen().items()}
    save_file(half, tmp_path / "own.safetensors")
    for path, array in flat(load(tmp_path / "own.safetensors", vit())).items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, half[path].astype(np.float32))


def test_flax_weights_are_refused_where_the_activation_differs(tmp_path):
    np.savez(tmp_path / "augreg.npz", **arrays(AUGREG))
    model = models.from_architecture(models.PRESETS["vit_s16"], name="vit_s16")
    with pytest.raises(ValueError, match="set model.name='augreg_vit_s16'"):
        load(tmp_path / "augreg.npz", model)


def test_positions_are_resized_to_the_model(tmp_path):
    np.savez(tmp_path / "augreg.npz", **arrays(AUGREG))
    model = vit(image_size=24)
    loaded = load(tmp_path / "augreg.npz", model)
    assert loaded["Transformer"]["posembed_input"]["pos_embedding"].shape == (1, 37, 8)
    assert model.prefix(loaded, np.zeros((1, 24, 24, 3))).shape == (1, 37, 8)


def test_every_missing_unexpected_and_misshaped_tensor_is_named(tmp_path):
    stored = linen()
    del stored["Transformer/encoderblock_1/LayerNorm_0/bias"]
    stored["Transformer/encoderblock_2/LayerNorm_0/bias"] = np.zeros(8, np.float32)
    stored["embedding/bias"] = np.zeros(9, np.float32)
    stored["cls"] = np.zeros((1, 1, 8), np.int8)
    save_file(stored, tmp_path / "own.safetensors")
    with pytest.raises(ValueError) as error:
        load(tmp_path / "own.safetensors", vit())
    message = str(error.value)
    assert "1 missing (Transformer/encoderblock_1/LayerNorm_0/bias)" in message
    assert "1 unexpected (Transformer/encoderblock_2/LayerNorm_0/bias)" in message
    assert "2 misshaped (cls int8[1, 1, 8], not [1, 1, 8]" in message
    assert "embedding/bias float32[9], not [8]" in message


@pytest.mark.parametrize(
    ("key", "found"),
    [
        ("dinov2.encoder.layer.0.layer_scale1.lambda1", "Hugging Face DINOv2"),
        ("vision_model.pre_layrnorm.weight", "Hugging Face CLIP"),
        ("blocks.0.0.fn.0.weight", "timm ConvMixer"),
        ("bert.embeddings.word_embeddings.weight", "text model"),
        ("nonsense", "no checkpoint of a known family"),
    ],
)
def test_another_family_is_named_in_the_refusal(key, found, tmp_path):
    save_file({key: np.zeros(8, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=f"{found}.*custom needs Hugging Face ViT"):
        load(tmp_path / "model.safetensors", vit())


def timm_convmixer(torch, config):
    """ConvMixer as timm lays it out (arXiv 2201.09792, figure 3)."""
    nn = torch.nn

    class Residual(nn.Module):
        def __init__(self, fn):
            super().__init__()
            self.fn = fn

        def forward(self, x):
            return self.fn(x) + x

    act = {"gelu": nn.GELU, "relu": nn.ReLU}[config.activation]
    dim, kernel, patch = config.width, config.kernel, config.patch
    model = nn.Module()
    model.stem = nn.Sequential(nn.Conv2d(3, dim, patch, stride=patch), act(), nn.BatchNorm2d(dim))
    model.blocks = nn.Sequential(
        *[
            nn.Sequential(
                Residual(
                    nn.Sequential(
                        nn.Conv2d(dim, dim, kernel, groups=dim, padding="same"),
                        act(),
                        nn.BatchNorm2d(dim),
                    )
                ),
                nn.Conv2d(dim, dim, 1),
                act(),
                nn.BatchNorm2d(dim),
            )
            for _ in range(config.depth)
        ]
    )
    model.head = nn.Linear(dim, 4)
    return model


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_convmixer_equals_torch_and_comes_back(activation, tmp_path):
    torch = pytest.importorskip("torch")
    config = ConvMixerConfig(6, 2, kernel=3, patch=3, activation=activation, image_size=20)
    torch.manual_seed(0)
    theirs = timm_convmixer(torch, config).eval()
    for name, value in theirs.state_dict().items():
        if value.is_floating_point():
            value.add_(torch.rand_like(value) if "var" in name else 0.3 * torch.randn_like(value))
    stored = {k: np.ascontiguousarray(v.numpy()) for k, v in theirs.state_dict().items()}
    save_file(stored, tmp_path / "timm.safetensors")
    for size in (20, 27):
        model = models.from_architecture(config, image_size=size, trained_blocks=1)
        params = load(tmp_path / "timm.safetensors", model)
        x = np.random.default_rng(size).normal(size=(2, size, size, 3)).astype(np.float32)
        features = model.suffix(params, model.prefix(params, x))
        with torch.no_grad():
            pixels = torch.from_numpy(x).permute(0, 3, 1, 2)
            expected = theirs.blocks(theirs.stem(pixels)).mean((2, 3)).numpy()
        np.testing.assert_allclose(features, expected, atol=1e-4)
    head = {"kernel": stored["head.weight"].T, "bias": stored["head.bias"]}
    pretrained.export_huggingface(tmp_path / "out", model, params, head)
    back = pretrained.checkpoints.read_safetensors(tmp_path / "out" / "model.safetensors")
    assert back.keys() == {key for key in stored if "num_batches" not in key}
    for key, reader in back.items():
        np.testing.assert_array_equal(reader(), stored[key])


@pytest.mark.parametrize("architecture", [VIT, MIXER])
def test_a_layout_is_one_to_one_and_reads_what_it_writes(architecture):
    model = models.from_architecture(architecture, trained_blocks=1)
    shapes = layouts.parameter_shapes(model)
    stored = layouts.stored(architecture, shapes)
    assert len({tensor.key for tensor in stored.values()}) == len(shapes)
    for path, array in flat(model.init(jax.random.key(0))).items():
        written = stored[path].write(array)
        assert written.shape == stored[path].shape
        np.testing.assert_array_equal(stored[path].read(written, shapes[path]), array)


def published(prefix="", **changes):
    """A Hugging Face ViT of VIT's shapes, its names behind a prefix."""
    shapes = layouts.parameter_shapes(vit())
    names = layouts.stored(VIT, shapes)
    values = {stored.key: np.full(stored.shape, 0.1, np.float32) for stored in names.values()}
    return {prefix + key: value for key, value in (values | changes).items()}


CONFIG = {
    "model_type": "vit",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "patch_size": 4,
    "image_size": 16,
}
WEIGHTS = ["model.safetensors", "vit.safetensors", "model-1.safetensors"]


def save_with_config(folder, name, config):
    save_file(published(), folder / name)
    (folder / "config.json").write_text(json.dumps(config))
    if name != "model-1.safetensors":
        return folder / name
    index = {"weight_map": dict.fromkeys(published(), name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    "field, value",
    [
        ("num_attention_heads", 4),
        ("num_attention_heads", "2"),
        ("num_attention_heads", None),
        ("hidden_act", "gelu_new"),
        ("hidden_act", ["gelu"] * 9999),
        ("layer_norm_eps", 1e-12),
        ("layer_norm_eps", "1e-6"),
    ],
)
def test_a_config_is_checked_whatever_the_weights_are_called(field, value, name, tmp_path):
    path = save_with_config(tmp_path, name, CONFIG | {field: value})
    with pytest.raises(ValueError, match=f"config.json says {field} ") as error:
        load(path, vit())
    message = str(error.value)
    assert message.isprintable() and len(message) < 500
    assert ("move it away" in message) == (name == "vit.safetensors")


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        {"method": "deltamask", "clients": 30, "model": {"name": "tiny_vit"}},  # a workdir's
        {"architecture": "convmixer_768_32", "num_classes": 10, "pretrained_cfg": {}},  # timm's
        {},
    ],
)
def test_configs_that_agree_or_say_nothing_of_the_network_load(name, config, tmp_path):
    assert load(save_with_config(tmp_path, name, config), vit())


@pytest.mark.parametrize(
    "other",
    [
        CONFIG | {"hidden_size": 16, "num_attention_heads": 4},  # another size
        CONFIG | {"model_type": "dinov2", "num_attention_heads": 4},  # another family of this size
        {k: v for k, v in CONFIG.items() if k != "patch_size"}
        | {"model_type": "bert", "layer_norm_eps": 1e-12},
        {
            "model_type": "clip",
            "vision_config": CONFIG | {"model_type": "clip_vision_model", "hidden_act": "x"},
        },
    ],
)
def test_the_config_of_another_file_of_the_folder_says_nothing(other, tmp_path):
    assert load(save_with_config(tmp_path, "vit.safetensors", other), vit())


def test_relatives_under_another_type_are_checked(tmp_path):
    """ViT-MSN has ViT's names and shapes, and another ε."""
    config = CONFIG | {"model_type": "vit_msn", "layer_norm_eps": 1e-12}
    with pytest.raises(ValueError, match="layer_norm_eps 1e-12"):
        load(save_with_config(tmp_path, "vit.safetensors", config), vit())


def test_a_vision_config_that_is_no_object_is_refused(tmp_path):
    with pytest.raises(ValueError, match="vision_config in config.json is no object"):
        load(save_with_config(tmp_path, "model.safetensors", {"vision_config": ["a"]}), vit())


@pytest.mark.parametrize("own", ["", "vit."])
@pytest.mark.parametrize(
    "wrappers",
    ["module.", "model.", "_orig_mod.", "module._orig_mod.", "backbone.", "encoder.", "model.encoder."],
)
def test_what_wrappers_put_before_the_names_is_removed(wrappers, own, tmp_path):
    stored = published(wrappers + own, **{"layernorm.bias": np.full(8, 7, np.float32)})
    stored[f"{wrappers}classifier.weight"] = np.zeros((3, 8), np.float32)
    save_file(stored, tmp_path / "x.safetensors")
    loaded = flat(load(tmp_path / "x.safetensors", vit()))
    np.testing.assert_array_equal(loaded["Transformer/encoder_norm/bias"], 7)


def test_wrapped_native_trees_load(tmp_path):
    save_file({f"module.{key}": array for key, array in linen().items()}, tmp_path / "x.safetensors")
    loaded = flat(load(tmp_path / "x.safetensors", vit()))
    np.testing.assert_array_equal(loaded["cls"], linen()["cls"])


@pytest.mark.parametrize(
    "stored, reason",
    [
        (published("tower."), "names its tensors below 'tower.'"),
        (published("deit."), "as another network or a wrapper does"),
        (published("student.") | published("teacher."), "several networks, below 'student.' and 'teacher.'"),
        (published("model.") | {"layernorm.bias": np.zeros(8, np.float32)}, "holds layernorm.bias twice"),
        (published() | {"decoder.weight": np.zeros(8, np.float32)}, r"1 unexpected \(decoder.weight\)"),
        (published() | {"a\n\x1b[2J": np.zeros(8, np.float32)}, "1 unexpected"),
    ],
)
def test_other_prefixes_and_names_are_told(stored, reason, tmp_path):
    save_file(stored, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=reason) as error:
        load(tmp_path / "x.safetensors", vit())
    assert str(error.value).isprintable()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused_by_name(value, dtype, tmp_path):
    stored = {key: array.astype(dtype) for key, array in published().items()}
    stored["encoder.layer.1.output.dense.weight"][3, 4] = value
    stored["pooler.dense.weight"] = np.full(3, np.nan, dtype)  # never read
    save_file(stored, tmp_path / "x.safetensors")
    expected = r"1 with NaN or infinite weights \(encoder.layer.1.output.dense.weight\)"
    with pytest.raises(ValueError, match=expected):
        load(tmp_path / "x.safetensors", vit())


def test_eight_bit_tensors_are_named_with_what_is_read(tmp_path):
    stored = published(**{"layernorm.bias": np.zeros(8, np.uint8)})
    content = save(stored)
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].replace(b'"U8"', b'"F8_E4M3"')
    (tmp_path / "x.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + content[8 + length :]
    )
    expected = r"layernorm.bias F8_E4M3\[8\], not \[8\] of float16, bfloat16, float32 or float64"
    with pytest.raises(ValueError, match=expected):
        load(tmp_path / "x.safetensors", vit())


@pytest.mark.parametrize(
    "shape", [(1, 18, 8), (1, 1, 8), (1, 0, 8), (2, 17, 8), (17, 8), (8,), (), (1, 17, 9)]
)
def test_position_embeddings_of_no_square_grid_are_misshaped(shape, tmp_path):
    name = "embeddings.position_embeddings"
    save_file(published(**{name: np.zeros(shape, np.float32)}), tmp_path / "x.safetensors")
    with pytest.raises(
        ValueError, match=r"1 misshaped \(embeddings.position_embeddings .*another square grid"
    ):
        load(tmp_path / "x.safetensors", vit())


def test_nothing_that_does_not_fit_is_unpacked(tmp_path):
    """An npz of a few kilobytes may announce, and hold, gigabytes of zeros."""
    stored = arrays(AUGREG)
    np.savez(tmp_path / "x.npz", **stored)
    for name in ("Transformer/posembed_input/pos_embedding", "embedding/bias"):
        with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            for key, array in stored.items():
                with archive.open(f"{key}.npy", "w") as file:
                    np.lib.format.write_array(file, np.zeros((1, 2**22, 8)) if key == name else array)
        tracemalloc.start()
        with pytest.raises(ValueError, match="1 misshaped"):
            load(tmp_path / "bomb.npz", vit())
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
        tracemalloc.stop()


def bert(old=False):
    """(model, its tensors below 'bert.'); `old`: by the names of 2018."""
    model = models.from_architecture(TINY, trained_blocks=1, max_length=6)
    wanted = layouts.stored(TINY, layouts.parameter_shapes(model))
    stored = arrays({f"bert.{tensor.key}": tensor.shape for tensor in wanted.values()})
    for new, name in (("weight", "gamma"), ("bias", "beta")) if old else ():
        stored = {key.replace(f"LayerNorm.{new}", f"LayerNorm.{name}"): x for key, x in stored.items()}
    return model, stored


def test_norms_of_2018_load_as_those_of_today(tmp_path):
    (model, stored), (_, old) = bert(), bert(old=True)
    assert "bert.encoder.layer.1.output.LayerNorm.gamma" in old and "cls.x" not in old
    save_file(stored, tmp_path / "new.safetensors")
    save_file(old | {"cls.predictions.transform.LayerNorm.gamma": np.ones(3)}, tmp_path / "old.safetensors")
    new, loaded = (flat(load(tmp_path / f"{name}.safetensors", model)) for name in ("new", "old"))
    assert new.keys() == loaded.keys()
    for path, array in new.items():
        np.testing.assert_array_equal(loaded[path], array, err_msg=path)


def test_a_norm_by_both_its_names_is_refused(tmp_path):
    model, stored = bert()
    stored |= {"bert.embeddings.LayerNorm.gamma": np.zeros(16, np.float32)}
    save_file(stored, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="holds embeddings.LayerNorm.weight twice"):
        load(tmp_path / "x.safetensors", model)


def test_a_learned_mask_is_no_checkpoint(tmp_path):
    save_file(
        {"mask": np.zeros(3, np.uint8), "head/bias": np.zeros(3, np.float32)}, tmp_path / "x.safetensors"
    )
    with pytest.raises(ValueError, match="is a learned mask, not a checkpoint, but custom needs"):
        load(tmp_path / "x.safetensors", vit())
