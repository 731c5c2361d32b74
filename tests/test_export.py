"""From a run's folder to files other programs load."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

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


@pytest.mark.parametrize(
    "file, content, message",
    [
        ("config.json", b"[1]", "holds no run, or a damaged one"),
        ("config.json", b"{}", "holds no run, or a damaged one"),
        (
            "config.json",
            b'{"method": "deltamask", "model": {"name": "vit"}}',
            "holds no run, or a damaged one",
        ),
        ("config.json", b"\xff", "holds no run, or a damaged one"),
        ("config.json", None, "holds no finished run"),
        ("split.json", b"{}", "holds no run, or a damaged one"),
        ("split.json", b'{"class_names": 3}', "holds no run, or a damaged one"),
        ("split.json", b'{"class_names": ["a"]}', "its head has not 1 classes"),
        ("split.json", None, "holds no finished run"),
        ("summary.json", b"{}", "summary.json is damaged"),
        ("deltamask.safetensors", None, "there is no deltamask.safetensors yet"),
        ("deltamask.safetensors", b"", "deltamask.safetensors is no readable safetensors file: it is empty"),
        ("deltamask.safetensors", {"mask": np.zeros(9, np.uint8)}, "lacks theta, head/kernel, head/bias"),
    ],
)
def test_folders_that_are_no_runs_or_damaged_are_told_in_one_line(finished, file, content, message, capsys):
    workdir, *_ = finished
    (workdir / file).unlink(missing_ok=True)
    if isinstance(content, dict):
        save_file(content, workdir / file)
    elif content is not None:
        (workdir / file).write_bytes(content)
    with pytest.raises(SystemExit) as stopped:
        export.main([str(workdir)])
    assert message in str(stopped.value)
    assert str(stopped.value).isprintable() and not (workdir / "export").exists()


def test_a_mask_that_does_not_fit_is_refused(finished):
    workdir, *_ = finished
    learned = load_file(workdir / "deltamask.safetensors")
    save_file(learned | {"mask": learned["mask"][:-1]}, workdir / "deltamask.safetensors")
    with pytest.raises(ValueError, match="its mask does not fit its theta"):
        export.export(workdir)


def test_a_file_for_a_folder_is_told_in_one_line(finished, tmp_path):
    workdir, *_ = finished
    (tmp_path / "file").write_text("")
    for arguments in ([str(tmp_path / "file")], [str(workdir), f"--out={tmp_path / 'file'}"]):
        with pytest.raises(SystemExit, match="file") as stopped:
            export.main(arguments)
        assert str(stopped.value).isprintable()
