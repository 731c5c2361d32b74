import contextlib
import dataclasses
import types

import huggingface_hub
import jax
import numpy as np
import pytest
from flax import serialization
from safetensors.numpy import save_file

from deltamask_jax import models, pretrained
from deltamask_jax.pretrained import checkpoints
from tests.data.test_tokenization import TOKENIZER
from tests.models.tiny_text import TINY


def test_what_cannot_be_read_says_why(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoints.read(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="holds no model.safetensors"):
        checkpoints.read(str(tmp_path))
    for name, reason in {
        "damaged.safetensors": "no readable safetensors",
        "damaged.npz": "no readable npz",
        "weights.bin": "pickle",
        "damaged.msgpack": "no safetensors, npz or flax msgpack",
    }.items():
        (tmp_path / name).write_bytes(b"\xc1garbage" * 9)
        with pytest.raises(ValueError, match=reason) as error:
            checkpoints.read(str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file({"a": np.zeros((64, 64), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="no readable safetensors"):
        checkpoints.read(str(path))


def test_shards_are_joined(tmp_path):
    for i in (1, 2):
        save_file({f"t{i}": np.full(3, i, np.float32)}, tmp_path / f"model-0000{i}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"t1": "model-00001.safetensors", "t2": "model-00002.safetensors"}}'
    )
    (tmp_path / "config.json").write_text('{"hidden_act": "gelu"}')
    found = checkpoints.read(str(tmp_path))
    assert {key: reader()[0] for key, reader in found.tensors.items()} == {"t1": 1, "t2": 2}
    assert found.config == {"hidden_act": "gelu"}


INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "index, reason",
    [
        (b"{}", "has no weight_map"),
        (b'{"weight_map": ["a"]}', "has no weight_map"),
        (b'{"weight_map": {}}', "has no weight_map"),
        (b'{"weight_map": {"t1": 3}}', "has no weight_map"),
        (b'["a"]', "is a JSON list, not an object"),
        (b"{", "is not valid JSON"),
        (b"\xff\xfe{}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'{"weight_map": {"t1": "../x.safetensors"}}', "no safetensors file of its folder"),
        (b'{"weight_map": {"t1": "/etc/passwd"}}', "no safetensors file of its folder"),
        (b'{"weight_map": {"t1": "sub/x.safetensors"}}', "no safetensors file of its folder"),
        (b'{"weight_map": {"t1": "pytorch_model.bin"}}', "no safetensors file of its folder"),
        (b'{"weight_map": {"t1": "a.safetensors", "t9": "a.safetensors"}}', "lacks t9"),
        (
            b'{"weight_map": {"t1": "a.safetensors", "t2": "b.safetensors"}}',
            "holds t1, as another shard does",
        ),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(index, reason, tmp_path):
    save_file({"t1": np.zeros(3, np.float32)}, tmp_path / "a.safetensors")
    save_file({name: np.zeros(3, np.float32) for name in ("t1", "t2")}, tmp_path / "b.safetensors")
    (tmp_path / INDEX).write_bytes(index)
    with pytest.raises(ValueError, match=reason) as error:
        checkpoints.read(str(tmp_path))
    assert str(tmp_path) in str(error.value) and str(error.value).isprintable()


def test_missing_shards_are_named(tmp_path):
    (tmp_path / INDEX).write_text(
        '{"weight_map": {"t1": "model-1.safetensors", "t2": "model-2.safetensors"}}'
    )
    save_file({"t1": np.zeros(3, np.float32)}, tmp_path / "model-1.safetensors")
    with pytest.raises(FileNotFoundError, match=r"lacks 1 of its files \(model-2.safetensors\)"):
        checkpoints.read(str(tmp_path))


@pytest.mark.parametrize(
    "config, reason",
    [
        (b'["a"]', "is a JSON list"),
        (b"null", "is a JSON NoneType"),
        (b"{", "is not valid JSON"),
        (b"\xff{}", "is not valid JSON"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "vit.safetensors"])
def test_a_config_that_is_no_object_is_refused(name, config, reason, tmp_path):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / name)
    (tmp_path / "config.json").write_bytes(config)
    with pytest.raises(ValueError, match=f"config.json {reason}.*move it away") as error:
        checkpoints.read(str(tmp_path / name))
    assert str(error.value).isprintable()


def test_a_byte_order_mark_is_no_damage(tmp_path):
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_bytes(b"\xef\xbb\xbf{}")
    assert checkpoints.read(str(tmp_path)).config == {}


def test_folders_for_files_and_files_for_folders(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"of pytorch_model.bin, it is a pickle.*torch.load\("):
        checkpoints.read(str(tmp_path))
    (tmp_path / "pytorch_model.bin").unlink()
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "vit.safetensors")
    with pytest.raises(ValueError, match="give the file itself: vit.safetensors"):
        checkpoints.read(str(tmp_path))
    (tmp_path / "model.safetensors").mkdir()
    with pytest.raises(ValueError, match="model.safetensors is no readable safetensors file: it is a folder"):
        checkpoints.read(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        checkpoints.read(str(tmp_path / "vit.safetensors" / "model.safetensors"))


@pytest.mark.parametrize(
    "names, chosen",
    [
        (("checkpoint_9", "checkpoint_9.bak2", "checkpoint_10"), "checkpoint_10"),
        (("checkpoint_1.0", "checkpoint_0.75"), "checkpoint_1.0"),
        (("checkpoint_9.orbax-checkpoint-tmp-0", "checkpoint_10"), "checkpoint_10"),
        (("checkpoint_best", "checkpoint_0"), "checkpoint_0"),
    ],
)
def test_of_numbered_checkpoints_the_last_is_read(names, chosen, tmp_path):
    for name in names:
        if "tmp" in name:
            (tmp_path / name).mkdir()  # left over by a run that was stopped
        else:
            (tmp_path / name).write_bytes(serialization.msgpack_serialize({name: np.zeros(1)}))
    assert list(checkpoints.read(str(tmp_path)).tensors) == [chosen]


def test_a_damaged_orbax_checkpoint_is_refused_in_one_line(tmp_path):
    (tmp_path / "_METADATA").write_text("{")
    (tmp_path / "_CHECKPOINT_METADATA").write_text("[]")
    with pytest.raises(ValueError, match="Orbax checkpoint .* cannot be read") as error:
        checkpoints.read(str(tmp_path))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("message", ["", "one\ntwo\n", "\x1b[31mred"])
def test_whatever_the_hub_answers_is_one_line_with_the_command(message, monkeypatch, tmp_path):
    class Odd(Exception):  # httpx's errors are no OSError
        pass

    def download(name, local_files_only=False, **wanted):
        if local_files_only:
            (tmp_path / INDEX).write_text('{"weight_map": {"a": "model-00002-of-00002.safetensors"}}')
            return str(tmp_path)  # an earlier download was interrupted
        raise Odd(message)

    class Online:
        def head(self, url, timeout):
            return None

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr("huggingface_hub.utils.get_session", Online)
    expected = "try: hf download org/name model-00002-of-00002.safetensors config.json"
    with pytest.raises(FileNotFoundError, match=expected) as error:
        checkpoints.read("hf:org/name")
    assert str(error.value).isprintable()


def test_without_a_network_the_hub_fails_soon_and_says_what_to_run(monkeypatch, tmp_path):
    class Offline:
        def head(self, url, timeout):
            assert timeout <= 5
            raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.utils.get_session", Offline)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="run: hf download org/name .* --revision abc") as error:
        checkpoints.read("hf:org/name", "abc")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no hub id"):
        checkpoints.read("hf:not a name")


def test_a_cached_hub_snapshot_needs_no_network(monkeypatch, tmp_path):
    def cached(name, *, local_files_only, revision, allow_patterns):
        assert (name, local_files_only, revision) == ("org/name", True, "abc")
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", cached)
    save_file({"a": np.ones(2, np.float32)}, tmp_path / "model.safetensors")
    assert list(checkpoints.read("hf:org/name", "abc").tensors) == ["a"]


def test_the_embedded_network_is_in_the_package_and_fits():
    model = models.from_architecture(models.PRESETS["glyph_vit"], name="glyph_vit")
    params = pretrained.load(types.SimpleNamespace(checkpoint="embedded", revision=""), model)
    kernel = np.asarray(params["embedding"]["kernel"])
    assert kernel.dtype == np.float32 and np.isfinite(kernel).all()
    assert pretrained.params_hash(params) != pretrained.params_hash(model.init(jax.random.key(0)))


def test_no_checkpoint_means_random_and_embedded_is_for_glyphs_only():
    model = models.from_architecture(models.PRESETS["tiny_vit"], name="tiny_vit")
    random = pretrained.load(types.SimpleNamespace(checkpoint="", revision=""), model)
    assert random["embedding"]["kernel"].shape == (8, 8, 3, 32)
    with pytest.raises(ValueError, match="no weights of tiny_vit are embedded"):
        pretrained.load(types.SimpleNamespace(checkpoint="embedded", revision=""), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": 6}, "knows 7 words, tiny_bert 6: choose the model it was trained with"),
        ({"vocabulary": 200}, "knows 7 words, tiny_bert 200"),
        ({"pad": 1}, "pads with word 0, tiny_bert with 1"),
    ],
)
def test_a_tokenizer_of_another_model_is_refused(changes, message, tmp_path):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER)
    config = types.SimpleNamespace(checkpoint=str(tmp_path), revision="")
    for network, refused in ((TINY, False), (dataclasses.replace(TINY, **changes), True)):
        model = models.from_architecture(network, name="tiny_bert", max_length=6, trained_blocks=1)
        with pytest.raises(ValueError, match=message) if refused else contextlib.nullcontext():
            assert pretrained.with_tokenizer(config, model).preprocessing.tokenizer == TOKENIZER


def test_a_tokenizer_that_numbers_words_beyond_the_embedding_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.replace('"not": 6', '"not": 5000'))
    config = types.SimpleNamespace(checkpoint=str(tmp_path), revision="")
    model = models.from_architecture(TINY, name="tiny_bert", max_length=6, trained_blocks=1)
    with pytest.raises(ValueError, match="numbers a word 5,000, tiny_bert has 8: choose the model"):
        pretrained.with_tokenizer(config, model)
