"""The card of an export: metadata that the hub reads, every figure of the run, no folder of this machine."""

import re

import pytest
from huggingface_hub import ModelCard
from ml_collections import ConfigDict

from deltamask_jax import models
from deltamask_jax.reporting import card
from tests.conftest import tiny_config
from tests.models.tiny_text import TINY
from tests.test_export import ENVIRONMENT, SUMMARY

TEXTS = models.from_architecture(TINY, name="tiny_bert", max_length=6, trained_blocks=1)


def written(folder, form="network", summary=SUMMARY, model=None, dp=None, **changes):
    config = tiny_config(**changes)
    if dp:
        config = ConfigDict(config.to_dict() | {"dp": dp})  # as config.json comes back
    model = model or models.build(config.model)
    card.write(folder, form, config, model, summary, ENVIRONMENT, ["cat", "d|g"])
    return ModelCard.load(folder / "README.md")


def test_a_card_says_what_the_run_was_and_what_it_cost(tmp_path):
    hub = {"model__checkpoint": "hf:org/base", "model__revision": "abc", "data": "hf:org/data,small"}
    found = written(tmp_path, seed=7, participation=0.5, **hub)
    about = found.data.to_dict()
    assert (about["base_model"], about["base_model_relation"]) == ("org/base", "finetune")
    assert (about["datasets"], about["library_name"]) == (["org/data"], "transformers")
    (result,) = found.data.eval_results
    assert (result.task_type, result.dataset_type) == ("image-classification", "org/data")
    assert (result.metric_type, result.metric_value, result.dataset_split) == ("accuracy", 0.75, "test")
    for line in (
        "| base model | org/base, commit abc |",
        "| data | hf:org/data,small, 2 classes: cat, d\\|g |",
        "| split | dirichlet, α = 10, 6 clients |",
        "| rounds | 2, each with 50 % of the clients |",
        "| bytes up | 12,345 |",
        "| bytes down | 678 |",
        "| privacy | no differential privacy |",
        "| seed | 7 |",
        "| accuracy | 75.00% of the test examples |",
        "| accuracy of a linear probe | 50.00% |",
        "python -m it",
    ):
        assert line in found.content.splitlines()


def test_the_accuracy_is_that_of_the_mask_that_is_exported(tmp_path):
    found = written(tmp_path, summary=SUMMARY | {"thresholded_accuracy": 0.625})
    assert "| accuracy | 62.50% of the test examples |" in found.content.splitlines()
    assert found.data.eval_results[0].metric_value == 0.625


def test_what_a_run_did_not_have_is_not_claimed(tmp_path):
    summary = SUMMARY | {"linear_probe_accuracy": None, "epsilon": 3.14159}
    dp = {"delta": 1e-5, "level": "client"}
    found = written(tmp_path, summary=summary, data="csv:/home/me/pets.csv", validation_examples=9, dp=dp)
    about = found.data.to_dict()
    assert "base_model" not in about and "datasets" not in about and "/home/me" not in found.content
    assert "| base model | tiny_vit, random weights |" in found.content
    assert "| privacy | ε = 3.142, δ = 1e-05, per client |" in found.content
    assert "75.00% of the validation examples" in found.content and "linear probe" not in found.content


@pytest.mark.parametrize(
    "data, kind, name, ids",
    [
        ("digits", "digits", "digits", None),
        ("fashion", "fashion", "fashion", None),
        ("tfds:glue/sst2:1.0.0", "tfds-glue-sst2-1.0.0", "tfds:glue/sst2:1.0.0", None),
        ("csv:/home/me/pets.csv", "csv-pets.csv", "csv:pets.csv", None),
        ("jsonl:~/pets.jsonl", "jsonl-pets.jsonl", "jsonl:pets.jsonl", None),
        ("folder:/home/me/our pets/", "folder-our-pets", "folder:our pets", None),
        ("npz:/home/me/été.npz", "npz--t-.npz", "npz:été.npz", None),
        ("idx:/home/me/mnist", "idx-mnist", "idx:mnist", None),
        ("hf:org/data,small", "org/data", "hf:org/data,small", ["org/data"]),
        ("hf:data", "data", "hf:data", ["data"]),
        ("hf:/home/me/data", "hf-data", "hf:data", None),
    ],
)
def test_the_hub_takes_the_name_of_every_kind_of_data(tmp_path, data, kind, name, ids):
    found = written(tmp_path, data=data)
    (result,) = found.data.eval_results
    assert re.fullmatch(r"(?:[\w-]+/)?[\w\-.]+", result.dataset_type, re.ASCII)  # the hub's own rule
    assert (result.dataset_type, result.dataset_name) == (kind, name)
    assert found.data.to_dict().get("datasets") == ids
    assert "/home/me" not in found.content


@pytest.mark.parametrize("share, percent", [(8 / 64, "12.5"), (1 / 1000, "0.1")])
def test_a_share_of_the_clients_keeps_its_digits(tmp_path, share, percent):
    found = written(tmp_path, participation=share)
    assert f"| rounds | 2, each with {percent} % of the clients |" in found.content.splitlines()


@pytest.mark.parametrize(
    "form, model, expected",
    [
        ("network", None, 'AutoModelForImageClassification.from_pretrained("FOLDER_OR_ORG/NAME")'),
        ("adapter", None, 'from_pretrained("org/base", num_labels=2, ignore_mismatched_sizes=True)'),
        ("adapter", None, 'PeftModel.from_pretrained(base, "FOLDER_OR_ORG/NAME")'),
        ("network", TEXTS, "features: mean of last_hidden_state"),
        ("compact", None, "load_compact("),
        ("network", "convmixer_768_32", "timm.create_model("),
    ],
)
def test_a_card_says_how_to_load_what_lies_there(tmp_path, form, model, expected):
    if isinstance(model, str):
        model = models.from_architecture(models.PRESETS[model], trained_blocks=1)
    content = written(tmp_path, form, model=model, model__checkpoint="hf:org/base").content
    code = content.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")
    assert expected in code
    assert ("peft" in content) == (form == "adapter")
