"""Names of timm, the original DINOv2 and OpenCLIP: the same parameters as from Hugging Face's names."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from deltamask_jax import models, pretrained
from deltamask_jax.models.vit import ViTConfig
from deltamask_jax.pretrained import layouts

SHAPE = {"width": 8, "depth": 2, "heads": 2, "mlp": 12, "patch": 4, "image_size": 8}
VIT = ViTConfig("vit", **SHAPE)
DINOV2 = ViTConfig("dinov2", **SHAPE, layer_scale=True)
GIANT = dataclasses.replace(DINOV2, activation="swiglu")
REGISTERS = dataclasses.replace(DINOV2, registers=2)
CLIP = ViTConfig(
    "clip", **SHAPE, activation="quick_gelu", eps=1e-5, patch_bias=False, pre_norm=True, projection=5
)
# Hugging Face's name, or how it begins -> the other; '#' is a block's number.
TIMM = {
    "embeddings.cls_token": "cls_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "reg_token",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "layernorm.": "norm.",
    "encoder.layer.#.attention.output.dense.": "blocks.#.attn.proj.",
    "encoder.layer.#.layernorm_before.": "blocks.#.norm1.",
    "encoder.layer.#.layernorm_after.": "blocks.#.norm2.",
    "encoder.layer.#.intermediate.dense.": "blocks.#.mlp.fc1.",
    "encoder.layer.#.output.dense.": "blocks.#.mlp.fc2.",
    "encoder.layer.#.norm": "blocks.#.norm",
    "encoder.layer.#.mlp.fc": "blocks.#.mlp.fc",
    "encoder.layer.#.mlp.weights_in.": "blocks.#.mlp.w12.",
    "encoder.layer.#.mlp.weights_out.": "blocks.#.mlp.w3.",
    "encoder.layer.#.layer_scale1.lambda1": "blocks.#.ls1.gamma",
    "encoder.layer.#.layer_scale2.lambda1": "blocks.#.ls2.gamma",
}
OPEN_CLIP = {
    "embeddings.class_embedding": "visual.class_embedding",
    "embeddings.position_embedding.weight": "visual.positional_embedding",
    "embeddings.patch_embedding.": "visual.conv1.",
    "pre_layrnorm.": "visual.ln_pre.",
    "post_layernorm.": "visual.ln_post.",
    "encoder.layers.#.layer_norm": "visual.transformer.resblocks.#.ln_",
    "encoder.layers.#.self_attn.out_proj.": "visual.transformer.resblocks.#.attn.out_proj.",
    "encoder.layers.#.mlp.fc1.": "visual.transformer.resblocks.#.mlp.c_fc.",
    "encoder.layers.#.mlp.fc2.": "visual.transformer.resblocks.#.mlp.c_proj.",
}


def build(architecture, name="custom"):
    return models.from_architecture(architecture, name=name, trained_blocks=1)


def load(path, model):
    return pretrained.load(types.SimpleNamespace(checkpoint=str(path), revision=""), model)


def network(architecture):
    """(model, random parameters, their tensors by Hugging Face's names)."""
    model = build(architecture)
    rng = np.random.default_rng(0)
    shapes = layouts.parameter_shapes(model)
    flat = {path: rng.normal(size=shape).astype(np.float32) for path, shape in shapes.items()}
    wanted = layouts.stored(architecture, shapes)
    return model, flat, {t.key: t.write(flat[path]) for path, t in wanted.items()}


def renamed(tensors, names, fused):
    """The tensors as the others name them; queries, keys and values joined."""
    found = {}
    for theirs, ours in names.items():
        for i in "01":
            begins = theirs.replace("#", i)
            for key, x in tensors.items():
                if key.startswith(begins):
                    found[key.replace(begins, ours.replace("#", i))] = x
    for i in "01":
        for leaf in ("weight", "bias"):
            parts, joined = fused
            found[joined.format(i, leaf)] = np.concatenate(
                [tensors[parts.format(i, part, leaf)] for part in "qkv"]
                if "self_attn" in parts
                else [tensors[parts.format(i, part, leaf)] for part in ("query", "key", "value")]
            )
    return found


def timm(tensors):
    fused = "encoder.layer.{}.attention.attention.{}.{}", "blocks.{}.attn.qkv.{}"
    return renamed(tensors, TIMM, fused)


def open_clip(tensors):
    fused = "encoder.layers.{}.self_attn.{}_proj.{}", "visual.transformer.resblocks.{}.attn.in_proj_{}"
    found = renamed(tensors, OPEN_CLIP, fused)
    found["visual.proj"] = np.ascontiguousarray(tensors["visual_projection.weight"].T)
    text = {"transformer.resblocks.0.ln_1.bias": 3, "token_embedding.weight": 9, "logit_scale": 1}
    return found | {name: np.zeros(size, np.float32) for name, size in text.items()}


def same(params, flat):
    found = {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    assert found.keys() == flat.keys()
    for path, x in found.items():
        np.testing.assert_array_equal(x, flat[path], err_msg=path)


@pytest.mark.parametrize("wrapper", ["", "module.backbone."])
@pytest.mark.parametrize("architecture", [VIT, DINOV2, GIANT, REGISTERS], ids=["vit", "s", "g", "reg"])
def test_names_of_timm_and_the_original_dinov2(architecture, wrapper, tmp_path):
    model, flat, tensors = network(architecture)
    theirs = {wrapper + key: x for key, x in timm(tensors).items()}
    theirs |= {f"{wrapper}head.weight": np.zeros((3, 8), np.float32)}
    theirs |= {} if architecture is VIT else {f"{wrapper}mask_token": np.zeros((1, 8), np.float32)}
    save_file(theirs, tmp_path / "theirs.safetensors")
    same(load(tmp_path / "theirs.safetensors", model), flat)


def test_positions_without_one_for_cls(tmp_path):
    model, flat, tensors = network(REGISTERS)
    flat[layouts.POSITIONS][:, 0] = 0  # timm adds it to the cls token
    theirs = timm(tensors) | {"pos_embed": np.ascontiguousarray(flat[layouts.POSITIONS][:, 1:])}
    save_file(theirs, tmp_path / "theirs.safetensors")
    same(load(tmp_path / "theirs.safetensors", model), flat)


def test_names_of_open_clip(tmp_path):
    model, flat, tensors = network(CLIP)
    file, about = tmp_path / "open_clip_model.safetensors", tmp_path / "open_clip_config.json"
    save_file(open_clip(tensors), file)
    with pytest.raises(ValueError, match="do not show an activation: put its open_clip_config.json beside"):
        load(file, model)
    for config, message in (
        ({"model_cfg": {"embed_dim": 5}}, "says gelu, but this network has quick_gelu"),
        ([], "open_clip_config.json is damaged"),
    ):
        about.write_text(json.dumps(config))
        with pytest.raises(ValueError, match=message):
            load(file, model)
    about.write_text('{"model_cfg": {"quick_gelu": true}}')
    same(load(file, model), flat)


def test_timms_vit_is_not_taken_for_that_of_transformers(tmp_path):
    _, _, tensors = network(VIT)
    save_file(timm(tensors), tmp_path / "timm.safetensors")
    model = build(dataclasses.replace(VIT, eps=1e-12), "vit_b16")
    with pytest.raises(ValueError, match="a timm ViT checkpoint, but vit_b16 needs Hugging Face ViT"):
        load(tmp_path / "timm.safetensors", model)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"blocks.0.attn.qkv.weight": np.zeros((26, 8), np.float32)}, r"\[26, 8\] are no queries, keys and "),
        ({"blocks.0.attn.qkv.bias": np.zeros((), np.float32)}, r"\[\] are no queries, keys and values of"),
        ({"layernorm.weight": np.zeros(8, np.float32)}, "holds layernorm.weight twice, under names of two"),
    ],
    ids=["rows", "scalar", "norm"],
)
def test_what_is_not_one_tensor_for_one_name_is_refused(more, message, tmp_path):
    model, _, tensors = network(VIT)
    save_file(timm(tensors) | more, tmp_path / "theirs.safetensors")
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path / "theirs.safetensors", model)
    assert "theirs.safetensors" in str(error.value) and str(error.value).isprintable()


def test_what_is_missing_is_named_as_hugging_face_does(tmp_path):
    model, _, tensors = network(DINOV2)
    theirs = timm(tensors)
    del theirs["blocks.1.attn.qkv.bias"]
    save_file(theirs, tmp_path / "cut.safetensors")
    with pytest.raises(ValueError, match="3 missing .*layer.1.attention.attention.key.bias"):
        load(tmp_path / "cut.safetensors", model)
