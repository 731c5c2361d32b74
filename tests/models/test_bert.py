"""Text encoders: `transformers`' own features on padded batches, whatever the cut, and every tunable part."""

import types

import jax
import numpy as np
import pytest

from configs import common
from deltamask_jax import models, pretrained
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods.peft import tuned_parts
from deltamask_jax.models import adapters
from deltamask_jax.models.bert import BertConfig
from deltamask_jax.task import Task

OURS = {"width": 24, "depth": 3, "heads": 4, "mlp": 40, "vocabulary": 60, "positions": 14}
FAMILIES = {
    "bert": BertConfig("bert", **OURS),
    "bert_mean": BertConfig("bert", **OURS, pooling="mean"),
    "roberta": BertConfig("roberta", **OURS, pad=1, types=1, eps=1e-5),
}


def build(family, trained_blocks=1, **changes):
    return models.from_architecture(
        FAMILIES[family], name=family, max_length=12, trained_blocks=trained_blocks, **changes
    )


def words(family):
    """Three texts of 12, 7 and 2 tokens: i32[3, 12]."""
    some = np.random.default_rng(0).integers(5, 60, (3, 12)).astype(np.int32)
    some[1, 7:] = some[2, 2:] = FAMILIES[family].pad
    return some


@pytest.fixture(scope="module")
def random():
    """A network with random weights, and its features."""
    model = build("bert_mean", 2)
    params = model.init(jax.random.key(0))
    return model, params, model.suffix(params, model.prefix(params, words("bert")))


@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_those_of_transformers(family, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    a = FAMILIES[family]
    kind = "Roberta" if a.family == "roberta" else "Bert"
    about = pretrained.layouts.huggingface_config(a)
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{kind}Model")(getattr(transformers, f"{kind}Config")(**about)).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        texts = words(family)
        mask = torch.from_numpy((texts != a.pad).astype(np.int64))
        out = theirs(torch.from_numpy(texts.astype(np.int64)), attention_mask=mask).last_hidden_state
        pooled = (
            (out * mask[..., None]).sum(1) / mask.sum(1, keepdim=True) if a.pooling == "mean" else out[:, 0]
        )
    theirs.save_pretrained(tmp_path)
    config = types.SimpleNamespace(checkpoint=str(tmp_path), revision="")
    for trained_blocks in (1, 3):
        model = build(family, trained_blocks)
        params = pretrained.load(config, model)
        ours = model.suffix(params, model.prefix(params, texts))
        np.testing.assert_allclose(ours, pooled.numpy(), atol=1e-4)
    pretrained.export_huggingface(tmp_path / "back", model, params)
    again = getattr(transformers, f"{kind}Model").from_pretrained(tmp_path / "back").state_dict()
    for name, value in theirs.state_dict().items():
        assert name.startswith("pooler") or torch.equal(value, again[name])


def test_padding_changes_nothing(random):
    model, params, features = random
    shorter = words("bert")[1:, :7]
    again = model.suffix(params, model.prefix(params, shorter))
    np.testing.assert_allclose(again, features[1:], atol=1e-5)
    tokens = np.asarray(model.prefix(params, words("bert")))
    assert not tokens[1, 7:].any() and tokens[1, :7].any(axis=-1).all()


def test_a_text_without_a_word_has_features(random):
    model, params, _ = random
    nothing = np.full((1, 12), FAMILIES["bert"].pad, np.int32)
    assert np.isfinite(model.suffix(params, model.prefix(params, nothing))).all()


@pytest.mark.parametrize("kind", ["bias", "adapter", "prompt", "lora", "fedsb", "unilora"])
def test_every_part_that_may_be_tuned_reaches_the_features(random, kind):
    model, params, features = random
    options = common.get_config().peft
    options.kind, options.scope, options.unilora_size = kind, "suffix", 64
    head = {"kernel": np.zeros((24, 2), np.float32), "bias": np.zeros(2, np.float32)}
    parts = tuned_parts(options, 0, Task(model, params, head, FlatIndex.create(params, model.masked)))
    rng = np.random.default_rng(1)  # not one shift of all channels, which LayerNorm takes away
    moved = jax.tree.map(lambda x: x + rng.normal(size=np.shape(x)).astype(np.float32), parts.trained)
    grown = adapters.grow(params, parts.expand(parts.frozen, moved))
    assert np.abs(model.suffix(grown, model.prefix(params, words("bert"))) - features).max() > 1e-3


@pytest.mark.parametrize("length", [1, 15])
def test_lengths_it_cannot_read_are_refused(length):
    with pytest.raises(ValueError, match=r"max_length of bert must be 2\.\.14"):
        models.from_architecture(FAMILIES["bert"], name="bert", max_length=length, trained_blocks=1)
