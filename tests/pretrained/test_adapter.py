"""What `peft` makes of an exported adapter on top of the published network: our logits."""

import types

import jax
import numpy as np
import pytest

from configs import common
from deltamask_jax import models, pretrained
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods.peft import tuned_parts
from deltamask_jax.models import adapters
from deltamask_jax.models.convmixer import ConvMixerConfig
from deltamask_jax.models.vit import ViTConfig
from deltamask_jax.task import Task
from tests.models.test_bert import FAMILIES as TEXTS
from tests.models.test_bert import words


def tuned(model, params, kind):
    """Parts of a kind, moved away from where they start, and a head of three classes."""
    options = common.get_config().peft
    options.kind, options.fedsb_rank, options.unilora_size = kind, 4, 64
    rng = np.random.default_rng(0)
    shape = (model.feature_dim, 3)
    head = {"kernel": rng.normal(size=shape).astype(np.float32), "bias": np.ones(3, np.float32)}
    parts = tuned_parts(options, 0, Task(model, params, head, FlatIndex.create(params, model.masked)))
    moved = jax.tree.map(lambda x: x + 0.3 * rng.normal(size=np.shape(x)).astype(np.float32), parts.trained)
    return parts.expand(parts.frozen, moved), head


def logits(model, params, head, inputs):
    features = jax.jit(lambda p, x: model.suffix(p, model.prefix(p, x)))(params, inputs)
    return np.asarray(features) @ head["kernel"] + head["bias"]


@pytest.mark.parametrize(
    "family, kind",
    [
        ("vit", "bias"),
        ("vit", "fedsb"),  # low-rank updates of every kernel
        ("dinov2", "bias"),
        ("dinov2", "fedsb"),
        ("dinov2_registers", "lora"),
        ("dinov2_swiglu", "bias"),
        ("dinov2_swiglu", "fedsb"),
        ("clip_projection", "bias"),
        ("clip_projection", "fedsb"),
        ("bert", "bias"),
        ("bert", "fedsb"),
        ("roberta", "unilora"),
    ],
)
def test_peft_gives_our_logits(family, kind, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    if family in TEXTS:
        name = {"bert": "Bert", "roberta": "Roberta"}[family]
        about = pretrained.layouts.huggingface_config(TEXTS[family])
        network = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**about))
        architecture, inputs, cls = TEXTS[family], words(family), "AutoModel"
    else:
        from tests.pretrained.test_parity import FAMILIES, images, theirs

        network, architecture, inputs = theirs(family), FAMILIES[family][3], images(24)
        cls = "CLIPVisionModelWithProjection" if "clip" in family else "AutoModelForImageClassification"
    network.save_pretrained(tmp_path / "base")
    model = models.from_architecture(architecture, max_length=12, trained_blocks=architecture.depth)
    params = pretrained.load(types.SimpleNamespace(checkpoint=str(tmp_path / "base"), revision=""), model)
    parts, head = tuned(model, params, kind)
    pretrained.export_adapter(tmp_path / "out", model, parts, head, list("abc"), str(tmp_path / "base"))

    options = {"num_labels": 3} if "Auto" in cls and family not in TEXTS else {}
    base = getattr(transformers, cls).from_pretrained(tmp_path / "base", **options)
    found = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    with torch.no_grad():
        if family in TEXTS:
            real = torch.from_numpy((inputs != architecture.pad).astype(np.int64))
            out = found(input_ids=torch.from_numpy(inputs.astype(np.int64)), attention_mask=real)
            features = out.last_hidden_state[:, 0].numpy()
        else:
            out = found(pixel_values=torch.from_numpy(inputs).permute(0, 3, 1, 2))
            features = out.image_embeds.numpy() if "clip" in family else None
    found = out.logits.numpy() if features is None else features @ head["kernel"] + head["bias"]
    expected = logits(model, adapters.grow(params, parts), head, inputs)
    assert np.abs(expected - logits(model, params, head, inputs)).max() > 0.01  # the parts do something
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_what_peft_has_no_names_for_is_refused(tmp_path):
    head = {"kernel": np.zeros((16, 2), np.float32), "bias": np.zeros(2, np.float32)}
    mixer = ConvMixerConfig(16, 2, kernel=3, patch=8, activation="relu", image_size=16)
    model = models.from_architecture(mixer, name="mixer", trained_blocks=1)
    with pytest.raises(ValueError, match="mixer is a network of timm"):
        pretrained.export_adapter(tmp_path, model, {}, head, ["a", "b"], "org/mixer")
    model = models.from_architecture(ViTConfig("vit", 16, 2, 2, 16, 8, 16), trained_blocks=1)
    prompts = {"Transformer/prompts_1": np.zeros((2, 16))}
    with pytest.raises(ValueError, match="peft has no adapter that holds Transformer/prompts_1"):
        pretrained.export_adapter(tmp_path, model, prompts, head, ["a", "b"], "org/vit")
    assert not list(tmp_path.iterdir())
