"""From a run's folder to files other programs load."""

import json
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from deltamask_jax import export, models, pretrained
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods.peft import tuned_parts
from deltamask_jax.task import Task
from tests.conftest import tiny_config

SUMMARY = {
    "final_accuracy": 0.75,
    "linear_probe_accuracy": 0.5,
    "rounds": 2,
    "uplink_bytes": 12345,
    "downlink_bytes": 678,
    "total_bytes_per_client": 2170.5,
}
HUB = "https://huggingface.co"
ENVIRONMENT = {"deltamask_jax": "1.2.3", "commit": "f00d", "command": "python -m it", "devices": "1 × cpu"}


def leave(workdir, config, learned, head):
    """What every run leaves and the export reads, without the run."""
    learned = learned | {f"head/{k}": v for k, v in head.items()}
    save_file(learned, workdir / f"{config.method}.safetensors")
    for name, content in {
        "config": config.to_dict(),
        "split": {"class_names": ["a", "b", "c"]},
        "summary": SUMMARY,
        "environment": ENVIRONMENT,
    }.items():
        (workdir / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def masked_run(tmp_path_factory):
    """What a run of masks leaves."""
    workdir, config = tmp_path_factory.mktemp("run"), tiny_config()
    model = models.build(config.model)
    params = pretrained.load(config.model, model)
    index = FlatIndex.create(params, model.masked)
    rng = np.random.default_rng(0)
    theta = rng.integers(0, 2**16, index.d).astype(np.uint16)
    head = {"kernel": rng.normal(size=(32, 3)).astype(np.float32), "bias": np.zeros(3, np.float32)}
    leave(workdir, config, {"mask": np.packbits(theta > 2**15), "theta": theta}, head)
    mask, kernels = index.unravel(theta > 2**15), index.kernels(params)
    masked = index.merge(params, {path: kernels[path] * mask[path] for path in index.paths})
    return workdir, model, params, masked, head


@pytest.fixture
def finished(masked_run, tmp_path):
    """The same, to be changed: (workdir, model, base parameters, those with the mask, head)."""
    return shutil.copytree(masked_run[0], tmp_path / "run"), *masked_run[1:]


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
        ("summary.json", None, "there is no summary.json yet"),
        ("environment.json", None, "holds no finished run"),
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


def tuned_run(workdir, kind, **changes):
    """What a run of `peft` on a base in a folder leaves: (model, base parameters, tuned parts, head)."""
    config = tiny_config(method="peft", peft__kind=kind, **changes)
    model = models.build(config.model)
    params = model.init(jax.random.key(3))
    pretrained.export_huggingface(workdir / "base", model, params)
    if config.model.checkpoint:
        config.model.checkpoint = str(workdir / "base")
    rng = np.random.default_rng(0)
    head = {"kernel": rng.normal(size=(32, 3)).astype(np.float32), "bias": np.ones(3, np.float32)}
    if kind == "adapter":
        learned = {"Transformer/encoderblock_4/adapter/up/bias": np.zeros(32, np.float32)}
    else:
        parts = tuned_parts(config.peft, 0, Task(model, params, head, FlatIndex.create(params, model.masked)))
        learned = {k: rng.normal(size=np.shape(x)).astype(np.float32) for k, x in parts.trained.items()}
    leave(workdir, config, learned, head)
    return model, params, learned


def test_a_run_of_lora_leaves_its_network_merged_and_an_adapter(tmp_path):
    model, params, learned = tuned_run(tmp_path, "lora", model__checkpoint="base")
    folders = export.export(tmp_path)
    assert [folder.name for folder in folders] == ["huggingface", "adapter"]
    block = "Transformer/encoderblock_5/MultiHeadDotProductAttention_0/value"
    change = learned[f"{block}/lora_a"] @ learned[f"{block}/lora_b"]
    before = load_file(tmp_path / "base/model.safetensors")
    after = load_file(folders[0] / "model.safetensors")
    name = "encoder.layer.5.attention.attention.value.weight"
    np.testing.assert_allclose(after[f"vit.{name}"], before[name] + change.T, rtol=1e-6)
    adapter = load_file(folders[1] / "adapter_model.safetensors")
    low, up = (adapter[f"base_model.model.vit.layers.5.attention.v_proj.lora_{x}.weight"] for x in "AB")
    np.testing.assert_allclose(up @ low, change.T, rtol=1e-5)
    about = json.loads((folders[1] / "adapter_config.json").read_text())
    assert about["base_model_name_or_path"] == str(tmp_path / "base")
    assert (about["r"], about["lora_alpha"], len(about["target_modules"])) == (4, 4, 4)


def test_without_a_base_that_others_load_there_is_no_adapter(tmp_path, capsys):
    tuned_run(tmp_path, "bias")
    assert [path.name for path in export.export(tmp_path)] == ["huggingface"]
    assert "adapter: transformers cannot load its base" in capsys.readouterr().out


@pytest.mark.parametrize(
    "kind, message", [("adapter", "no published format has"), ("bias", "peft.safetensors is damaged")]
)
def test_parts_that_cannot_be_exported_are_told_in_one_line(tmp_path, kind, message):
    tuned_run(tmp_path, kind)
    damaged = load_file(tmp_path / "peft.safetensors")
    save_file({k: x for k, x in damaged.items() if "norm/bias" not in k}, tmp_path / "peft.safetensors")
    with pytest.raises(SystemExit, match=message) as stopped:
        export.main([str(tmp_path)])
    assert str(stopped.value).isprintable() and not (tmp_path / "export").exists()


def test_a_pushed_export_lies_at_the_repositorys_root_in_one_commit(finished, monkeypatch, capsys):
    calls = []

    class Api:
        def create_repo(self, name, exist_ok):
            calls.append(name)

        def create_commit(self, name, operations, commit_message):
            calls.append({o.path_in_repo for o in operations})
            assert commit_message == "deltamask on tiny_vit"
            return huggingface_hub.CommitInfo(f"{HUB}/org/it/commit/1", commit_message, "", "1")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr("deltamask_jax.hub.unreachable", lambda: "")
    export.main([str(finished[0]), "--push-to-hub=org/it"])
    network = {
        "model.safetensors",
        "config.json",
        "preprocessor_config.json",
        "head.safetensors",
        "README.md",
    }
    assert calls == ["org/it", network | {"compact.safetensors"}]
    assert f"{HUB}/org/it/commit/1" in capsys.readouterr().out


def test_offline_nothing_is_written_or_pushed(finished, monkeypatch):
    monkeypatch.setattr("deltamask_jax.hub.unreachable", lambda: "the hub cannot be reached")
    with pytest.raises(SystemExit, match="nothing can be pushed to org/it: the hub cannot be reached") as end:
        export.main([str(finished[0]), "--push-to-hub=org/it"])
    assert str(end.value).isprintable() and not (finished[0] / "export").exists()
