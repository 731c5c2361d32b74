import types

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from deltamask_jax import models, pretrained
from deltamask_jax.pretrained import checkpoints


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
