"""From a run's folder to files other programs load."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from deltamask_jax import export, models, pretrained
from deltamask_jax.flat_index import FlatIndex
from tests.conftest import tiny_config


@pytest.fixture
def finished(tmp_path):
    """What a run leaves and the export reads, without the run."""
    config = tiny_config()
    model = models.build(config.model)
    params = pretrained.load(config.model, model)
    index = FlatIndex.create(params, model.masked)
    rng = np.random.default_rng(0)
    theta = rng.integers(0, 2**16, index.d).astype(np.uint16)
    head = {"kernel": rng.normal(size=(32, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    learned = {"mask": np.packbits(theta > 2**15), "theta": theta}
    save_file(learned | {f"head/{k}": v for k, v in head.items()}, tmp_path / "deltamask.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    (tmp_path / "split.json").write_text(json.dumps({"class_names": ["a", "b", "c"]}))
    mask, kernels = index.unravel(theta > 2**15), index.kernels(params)
    masked = index.merge(params, {path: kernels[path] * mask[path] for path in index.paths})
    return tmp_path, model, params, masked, head


def test_the_compact_file_gives_the_masked_network_and_head(finished):
    workdir, _, params, expected, head = finished
    written = export.export(workdir)
    found, found_head = pretrained.load_compact(written[0], params)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    jax.tree.map(np.testing.assert_array_equal, found_head, head)


def test_transformers_loads_the_network_and_sees_the_same_features(finished):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    workdir, model, _, expected, _ = finished
    folder = export.export(workdir, workdir / "elsewhere")[1]
    theirs = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert list(theirs.config.id2label.values()) == ["a", "b", "c"]
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    ours = model.suffix(expected, model.prefix(expected, images))
    with torch.no_grad():
        hidden = theirs.base_model(torch.from_numpy(images.transpose(0, 3, 1, 2))).last_hidden_state
    np.testing.assert_allclose(ours, hidden[:, 0], atol=1e-5)


def test_errors_are_one_line(finished, tmp_path, capsys):
    workdir, *_ = finished
    save_file({"head/bias": np.zeros(3, np.float32)}, workdir / "deltamask.safetensors")
    for folder, message in ((workdir, "learned no mask"), (tmp_path / "none", "holds no finished run")):
        with pytest.raises(SystemExit, match=message) as stopped:
            export.main([str(folder)])
        assert "\n" not in str(stopped.value)
