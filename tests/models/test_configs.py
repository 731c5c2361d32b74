"""Every config's model builds at its real size, without computing anything."""

import importlib
from pathlib import Path

import jax
import pytest

from deltamask_jax import models
from deltamask_jax.flat_index import FlatIndex

NAMES = sorted(path.stem for path in Path(__file__).parents[2].glob("configs/*.py"))
PAPER = {"convmixer_768_32": 3_137_280, "dinov2_small": 8_847_360, "vit_b16": 35_389_440}
PAPER |= {"clip_vit_b32": 35_389_440, "dinov2_base": 35_389_440}
PAPER |= {"clip_vit_l14": 62_914_560, "dinov2_large": 62_914_560, "dinov2_giant": 141_557_760}


@pytest.mark.parametrize("name", NAMES)
def test_the_model_of_every_config_builds(name):
    config = importlib.import_module(f"configs.{name}").get_config()
    model = models.build(config.model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    if name in PAPER:
        assert FlatIndex.create(params, model.masked).d == PAPER[name]
    images = jax.ShapeDtypeStruct((3, *model.preprocessing.shape), model.preprocessing.dtype)
    features = jax.eval_shape(lambda p, x: model.suffix(p, model.prefix(p, x)), params, images)
    assert features.shape == (3, model.feature_dim)


@pytest.mark.parametrize("name", sorted(PAPER))
def test_options_reach_every_config_and_a_smoke_run_loads_nothing(name):
    get_config = importlib.import_module(f"configs.{name}").get_config
    config = get_config("dataset=idx:somewhere,alpha=0.1,rho=0.2")
    assert (config.data, config.partition.alpha, config.participation) == (
        "idx:somewhere",
        0.1,
        0.2,
    )
    assert config.model.checkpoint.startswith("hf:")
    smoke = get_config("smoke")
    assert smoke.model.name == config.model.name and not smoke.model.checkpoint
