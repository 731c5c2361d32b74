"""Our features against `transformers`' own, from the files it saves."""

import os
import pathlib
import types

import jax
import numpy as np
import pytest
from flax import traverse_util

from deltamask_jax import models, pretrained
from deltamask_jax.models.vit import ViTConfig

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "patch_size": 4}
DINOV2 = SHAPE | {"image_size": 24, "mlp_ratio": 4}
VIT = SHAPE | {"image_size": 24, "intermediate_size": 48, "layer_norm_eps": 1e-12}
CLIP = SHAPE | {"image_size": 24, "intermediate_size": 48, "projection_dim": 20}
OURS = {"width": 32, "depth": 2, "heads": 4, "patch": 4, "image_size": 24}
OUR_CLIP = OURS | {"mlp": 48, "eps": 1e-5, "activation": "quick_gelu", "patch_bias": False}
OUR_CLIP |= {"pre_norm": True}
OUR_DINOV2 = OURS | {"mlp": 128, "layer_scale": True}

FAMILIES = {
    "vit": ("ViTModel", "ViTConfig", VIT, ViTConfig("vit", **OURS, mlp=48, eps=1e-12)),
    "clip": ("CLIPVisionModel", "CLIPVisionConfig", CLIP, ViTConfig("clip", **OUR_CLIP)),
    "clip_projection": (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        CLIP,
        ViTConfig("clip", **OUR_CLIP, projection=20),
    ),
    "dinov2": ("Dinov2Model", "Dinov2Config", DINOV2, ViTConfig("dinov2", **OUR_DINOV2)),
    "dinov2_swiglu": (
        "Dinov2Model",
        "Dinov2Config",
        DINOV2 | {"use_swiglu_ffn": True},
        ViTConfig("dinov2", **(OUR_DINOV2 | {"mlp": 88, "activation": "swiglu"})),
    ),
    "dinov2_registers": (
        "Dinov2WithRegistersModel",
        "Dinov2WithRegistersConfig",
        DINOV2 | {"num_register_tokens": 3},
        ViTConfig("dinov2", **OUR_DINOV2, registers=3),
    ),
}


def theirs(family):
    """A randomly initialised model in which no tensor keeps a trivial value."""
    cls, config, values, _ = FAMILIES[family]
    torch.manual_seed(0)
    model = getattr(transformers, cls)(getattr(transformers, config)(**values)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def ours(family, size):
    return models.from_architecture(FAMILIES[family][3], name=family, image_size=size, trained_blocks=1)


def load(directory, model):
    config = types.SimpleNamespace(checkpoint=str(directory), revision="")
    return pretrained.load(config, model)


def images(size):
    return np.random.default_rng(size).normal(size=(2, size, size, 3)).astype(np.float32)


def their_features(model, x):
    pixels = torch.from_numpy(x).permute(0, 3, 1, 2)
    resize = {} if "Dinov2" in type(model).__name__ else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        out = model(pixels, **resize)
    if "image_embeds" in out:
        return out.image_embeds.numpy()
    if "CLIP" in type(model).__name__:
        return out.pooler_output.numpy()
    return out.last_hidden_state[:, 0].numpy()


def our_features(model, params, x):
    return np.asarray(jax.jit(lambda p, x: model.suffix(p, model.prefix(p, x)))(params, x))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_equal_transformers_and_come_back(family, tmp_path):
    reference = theirs(family)
    reference.save_pretrained(tmp_path / "in")
    for size in (24, 16):  # the position grid as saved, and a smaller one
        model, x = ours(family, size), images(size)
        params = load(tmp_path / "in", model)
        features = our_features(model, params, x)
        assert features.std() > 0.1
        np.testing.assert_allclose(features, their_features(reference, x), atol=1e-4, rtol=0)

    model = ours(family, 24)
    params = load(tmp_path / "in", model)
    pretrained.export_huggingface(tmp_path / "out", model, params)
    automatic = transformers.AutoModel.from_pretrained(tmp_path / "out")
    if family == "clip_projection":  # AutoModel leaves the projection out
        automatic = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "out")
    expected, x = reference.state_dict(), images(24)
    for name, tensor in automatic.state_dict().items():
        if not name.startswith("pooler") and "mask_token" not in name:
            assert torch.equal(tensor, expected[name]), name
    back = their_features(automatic.eval(), x)
    np.testing.assert_allclose(back, their_features(reference, x), atol=1e-6, rtol=0)


@pytest.mark.parametrize("family", ["vit", "dinov2", "dinov2_registers"])
def test_exported_head_gives_our_logits(family, tmp_path):
    theirs(family).save_pretrained(tmp_path / "in")
    model, x = ours(family, 32), images(32)
    params = load(tmp_path / "in", model)
    random = np.random.default_rng(0)
    head = {"kernel": random.normal(size=(32, 3)), "bias": random.normal(size=3)}
    pretrained.export_huggingface(tmp_path / "out", model, params, head, class_names=("ant", "bee", "cat"))
    auto = transformers.AutoModelForImageClassification
    classifier, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["unexpected_keys"] and not info["missing_keys"]  # of either transformers warns
    assert classifier.config.id2label == {0: "ant", 1: "bee", 2: "cat"}
    with torch.no_grad():
        logits = classifier(torch.from_numpy(x).permute(0, 3, 1, 2)).logits.numpy()
    expected = our_features(model, params, x) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_a_whole_clip_checkpoint_gives_its_vision_tower(tmp_path):
    text = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 50}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 8}
    text |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    config = transformers.CLIPConfig(text_config=text, vision_config=CLIP, projection_dim=20)
    torch.manual_seed(1)
    clip = transformers.CLIPModel(config).eval()
    clip.save_pretrained(tmp_path)
    model, x = ours("clip_projection", 24), images(24)
    features = our_features(model, load(tmp_path, model), x)
    with torch.no_grad():
        out = clip.get_image_features(torch.from_numpy(x).permute(0, 3, 1, 2))
    expected = out if torch.is_tensor(out) else out.pooler_output
    np.testing.assert_allclose(features, expected.numpy(), atol=1e-4)


def test_a_published_file_without_the_base_prefix_or_in_half_precision_loads(tmp_path):
    reference = theirs("vit")
    classifier = transformers.ViTForImageClassification(reference.config)
    classifier.vit.load_state_dict(reference.state_dict(), strict=False)
    classifier.half().save_pretrained(tmp_path)
    model = ours("vit", 24)
    params = load(tmp_path / "model.safetensors", model)
    kernel = params["Transformer"]["encoderblock_1"]["MlpBlock_0"]["Dense_0"]["kernel"]
    stored = reference.encoder.layer[1] if hasattr(reference, "encoder") else reference.layers[1]
    weight = next(p for n, p in stored.named_parameters() if p.shape == (48, 32))
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, weight.detach().half().float().numpy().T)


def test_what_shapes_cannot_show_is_refused(tmp_path):
    theirs("vit").save_pretrained(tmp_path)
    architecture = ViTConfig("vit", **(OURS | {"heads": 8}), mlp=48, eps=1e-12)
    model = models.from_architecture(architecture, trained_blocks=1)
    with pytest.raises(ValueError, match="num_attention_heads 4, but custom has 8"):
        load(tmp_path, model)


def test_every_parameter_is_loaded_not_left_at_its_initial_value(tmp_path):
    theirs("dinov2_registers").save_pretrained(tmp_path)
    model = ours("dinov2_registers", 24)
    loaded = traverse_util.flatten_dict(load(tmp_path, model), sep="/")
    initial = traverse_util.flatten_dict(model.init(jax.random.key(0)), sep="/")
    assert loaded.keys() == initial.keys()
    assert all(not np.array_equal(loaded[path], initial[path]) for path in loaded)


@pytest.mark.skipif(not os.environ.get("DELTAMASK_DINOV2"), reason="set DELTAMASK_DINOV2 to a file")
@pytest.mark.parametrize("size", [224, 84])
def test_a_real_dinov2_small_equals_transformers(size, tmp_path):
    """DELTAMASK_DINOV2: safetensors of a DINOv2-S/14 with Hugging Face names, any precision."""
    file = pathlib.Path(os.environ["DELTAMASK_DINOV2"])
    (tmp_path / "model.safetensors").symlink_to(file)
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(tmp_path)
    reference = transformers.AutoModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    model = models.from_architecture(models.PRESETS["dinov2_small"], name="dinov2_small", image_size=size)
    features = our_features(model, load(tmp_path, model), images(size))
    np.testing.assert_allclose(features, their_features(reference, images(size)), atol=1e-4)
