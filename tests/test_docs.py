"""What the documentation says is so: its examples run, its reference is current, its commands exist."""

import doctest
import importlib
import re
import runpy
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import config_flags

import deltamask_jax
from deltamask_jax import codecs, data, methods, models
from deltamask_jax import config as config_lib
from deltamask_jax.codecs import PayloadError, envelope
from deltamask_jax.federation.rounds import play_round
from tests.codecs.cases import drift, sealed
from tests.conftest import cohort_of, tiny_config

ROOT = Path(__file__).parents[1]
EXAMPLES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "deltamask_jax").rglob("*.py"))
    if ">>> " in path.read_text()
]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "launch" / "README.md"]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / page).read_text(), flags=re.S)


@pytest.fixture
def example(tmp_path, monkeypatch):
    """Writes a page's code to the file its reader would write; registries are restored afterwards."""
    for registry in (methods.METHODS, codecs.REGISTRY, envelope.CODEC_IDS, models.PRESETS):
        for name in [*registry, "channel_scales", "gaps", "my_vit"]:
            if name in registry:
                monkeypatch.setitem(registry, name, registry[name])
            else:
                monkeypatch.setitem(registry, name, None)
                del registry[name]

    def write(page, block=0):
        path = tmp_path / "mine.py"
        path.write_text(blocks(page)[block])
        return path

    return write


def config_of(path):
    config = config_flags.config_flags.ConfigFileFlagParser("config").parse(str(path))
    config_lib.validate(config)
    methods.check(config)
    return config


def test_the_configuration_reference_is_current():
    page = runpy.run_path(str(ROOT / "docs" / "configuration.py"))["page"]()
    assert (ROOT / "docs" / "configuration.md").read_text() == page, "run: python -m docs.configuration"
    assert not re.search(r"\|\s+\|$", page, flags=re.M), "a setting without a comment"


def test_the_example_method_learns(example, problem):
    config = config_of(example("your-method.md"))
    assert config.method == "channel_scales"
    method = methods.build(tiny_config(method="channel_scales"), problem.task)
    state, losses, start = method.init(), [], method.init()
    everyone = np.arange(len(problem.parts))
    for number in (1, 2, 3):
        state, result = play_round(problem, method, state, cohort_of(everyone, number))
        losses.append(result.train_loss)
    assert losses[-1] < losses[0]
    assert set(state.weights) == {"scales", "head"}
    for before, after in zip(
        *(jax.tree.leaves(its.weights["scales"]) for its in (start, state)), strict=True
    ):
        assert (before == 1).all() and (after != 1).any()


def test_the_example_codec_keeps_the_promises(example):
    assert config_of(example("your-codec.md")).codec.name == "gaps"
    codec = codecs.get("gaps", level=1)
    positions, context = drift(5000, 0.3, seed=1)
    payload = codec.encode(positions, context)
    np.testing.assert_array_equal(codec.decode(payload, context), positions)
    none = np.zeros(0, np.uint32)
    assert codec.decode(codec.encode(none, context), context).size == 0
    rng = np.random.default_rng(0)
    for _ in range(300):
        broken = bytearray(payload)
        broken[rng.integers(12, len(broken))] ^= 1 << rng.integers(8)
        try:
            found = codec.decode(sealed(bytes(broken)), context)
        except PayloadError:
            continue
        assert (np.diff(found.astype(np.int64)) > 0).all() and found[-1] < context.d


def test_the_example_data_and_model(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(blocks("your-model-and-data.md")[0], {})
    dataset = data.load("npz:mine.npz")
    assert len(dataset.train) == 100 and dataset.train.users.max() == 19
    config = config_of(example("your-model-and-data.md", 1))
    assert models.build(config.model).feature_dim == 48


@pytest.mark.parametrize("module", EXAMPLES)
def test_examples_in_docstrings(module):
    result = doctest.testmod(importlib.import_module(module))
    assert result.attempted and not result.failed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_name_files_and_settings_that_exist(page):
    text = page.read_text().replace("\\\n", " ")
    for file in re.findall(r"python3? ((?:launch|benchmarks|docs)/\S+\.py)", text):
        assert (ROOT / file).exists(), file
    for named in re.findall(r"--config=(configs/[^\s`]+)", text):
        config_lib.validate(config_flags.config_flags.ConfigFileFlagParser("config").parse(named))
    known = config_lib.flatten(config_flags.config_flags.ConfigFileFlagParser("c").parse("configs/common.py"))
    for setting in re.findall(r"--config\.([a-z_.]+)=", text):
        assert setting in known, setting


def test_the_bundle_of_flower_has_the_package_s_version():
    bundle = tomllib.loads((ROOT / "flower-app" / "pyproject.toml").read_text())
    assert bundle["project"]["version"] == deltamask_jax.__version__  # which it cannot read by itself
