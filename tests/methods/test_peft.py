"""Parameter-efficient tuning: how much is tuned, that it learns, and what it costs on the wire."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from configs import common
from deltamask_jax import codecs, experiment, methods, models
from deltamask_jax.codecs import PayloadError
from deltamask_jax.evaluation import evaluator
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods.method import server_context
from deltamask_jax.methods.peft import tuned_parts
from deltamask_jax.setup import set_up
from deltamask_jax.task import Task
from tests import conftest
from tests.conftest import cohort_of, tiny_config


def play(problem, rounds, **changes):
    settings = {"method": "peft", "peft__learning_rate": 3e-3, "local_epochs": 4} | changes
    return conftest.play(problem, rounds, **settings)


@pytest.mark.parametrize(
    "kind, depth, tuned",
    [
        ("head", "deep", 76_900),
        ("bias", "deep", 179_812),  # 12 · 8,448 in blocks, 768 each of final norm and patch embedding
        ("adapter", "deep", 233_668),  # 12 · (2 · 768 · 8 + 8 + 768)
        ("prompt", "deep", 169_060),  # 12 · 10 · 768
        ("prompt", "shallow", 84_580),
        ("lora", "deep", 224_356),  # 24 · 2 · 768 · 4
        ("fedsb", "deep", 95_332),  # 12 · 6 · 16²
        ("unilora", "deep", 77_924),  # 1,024
    ],
)
def test_tuned_parameters_of_vit_b16_with_100_classes(kind, depth, tuned):
    config = common.get_config()
    config.peft.kind, config.peft.prompt_depth = kind, depth
    config.model.name, config.model.trained_blocks = "vit_b16", 12
    model = models.build(config.model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    head = {
        "kernel": jax.ShapeDtypeStruct((768, 100), jnp.float32),
        "bias": jax.ShapeDtypeStruct((100,), jnp.float32),
    }
    task = Task(model, params, head, FlatIndex.create(params, model.masked))
    parts = tuned_parts(config.peft, config.seed, task).trained
    assert sum(leaf.size for leaf in jax.tree.leaves((head, parts))) == tuned


@pytest.mark.parametrize(
    "changes",
    [
        {"peft__kind": "head", "peft__wire": "8bit"},
        {"peft__kind": "adapter", "peft__wire": "float16"},
        {"peft__kind": "prompt", "peft__prompt_depth": "shallow"},
        {"peft__kind": "lora", "peft__wire": "8bit"},
        {"peft__kind": "fedsb", "peft__wire": "8bit"},
        {"peft__kind": "unilora", "peft__wire": "8bit", "peft__unilora_size": 200},
    ],
    ids=lambda changes: changes["peft__kind"],
)
def test_each_kind_learns_and_its_payloads_are_as_long_as_its_values(problem, changes):
    problem, method, state, results = play(problem, 3, **changes)
    losses = [result.train_loss for result in results]
    assert losses[2] < losses[1] < losses[0]
    start = method.network(method.init())
    for before, after in zip(jax.tree.leaves(start), jax.tree.leaves(method.network(state)), strict=True):
        assert before.shape == after.shape
    n = sum(leaf.size for leaf in jax.tree.leaves(state))
    assert results[0].details == {"tuned_parameters": n}
    size = {"8bit": 1, "float16": 2}.get(changes.get("peft__wire"), 4)
    groups = 4 * -(-n // 512) if size == 1 else 0
    for result in results:  # zstd saves some, its frame and the envelope add some
        assert 0.6 * size * n < result.uplink_bytes / 6 < size * n + groups + 80
    assert results[0].downlink_bytes < 6 * 200  # nothing has changed yet
    assert 0.6 * size * n < results[2].downlink_bytes / 6 < size * n + groups + 80
    exported = method.export(state)
    assert {"head/kernel", "head/bias"} <= exported.keys()
    assert sum(array.size for array in exported.values()) == n


def test_a_head_that_is_not_trained_stays_and_does_not_travel(problem):
    changes = {"peft__kind": "bias", "peft__wire": "8bit", "head__trained": False}
    problem, method, state, results = play(problem, 1, **changes)
    head = problem.task.head
    whole = play(problem, 1, **(changes | {"head__trained": True}))[3]
    assert whole[0].details["tuned_parameters"] - results[0].details["tuned_parameters"] == sum(
        leaf.size for leaf in jax.tree.leaves(head)
    )
    assert results[0].uplink_bytes < whole[0].uplink_bytes
    jax.tree.map(np.testing.assert_array_equal, method.network(state)[1], head)
    np.testing.assert_array_equal(method.export(state)["head/kernel"], head["kernel"])
    assert any(leaf.any() for leaf in jax.tree.leaves(jax.tree.map(np.subtract, state, method.init())))


def test_tuning_the_head_alone_is_linear_probing(problem):
    _, tuned, state, _ = play(problem, 2, peft__kind="head", peft__learning_rate=0.01)
    _, probe, head, _ = play(problem, 2, method="linear_probe")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), state["head"], head.weights)
    assert evaluator(problem, tuned)(state) == evaluator(problem, probe)(head)


def test_the_server_keeps_what_rounding_takes_from_the_wire(problem):
    """At 8 bits clients start from a rounded state; the server's own is not rounded again and again."""
    config = tiny_config(method="peft", peft__wire="8bit")
    method = methods.build(config, problem.task)
    start = method.init()
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda x: x + rng.normal(size=x.shape).astype(np.float32), start)
    cohort = cohort_of([0], 4, examples=np.array([3]))
    received = method.start(method.down.decode(method.down.encode(state, cohort), cohort), cohort)["weights"]
    largest = max(np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (state, start)), strict=True))
    for kept, arrived in zip(*map(jax.tree.leaves, (state, received)), strict=True):
        assert 0 < np.abs(kept - arrived).max() <= 1.01 * largest / 127
    unmoved = jax.tree.map(np.zeros_like, start)
    payloads = method.up.encode(state, [unmoved], cohort)
    same = method.merge(state, method.up.decode(state, payloads, cohort)[0], cohort)
    jax.tree.map(np.testing.assert_array_equal, same, state)


@pytest.mark.parametrize("wire", ["float32", "float16", "8bit"])
def test_foreign_payloads_are_refused(problem, wire):
    method = methods.build(tiny_config(method="peft", peft__kind="head", peft__wire=wire), problem.task)
    cohort = cohort_of([0])
    payload = method.down.encode(method.init(), cohort)
    values = np.full(99, np.inf, np.float32)
    for bad in (payload[:-1], codecs.get("dense").encode(values, server_context(cohort, 99))):
        with pytest.raises(PayloadError):
            method.down.decode(bad, cohort)
    with pytest.raises(PayloadError):
        method.down.decode(payload, cohort_of([0], 2))


def test_what_a_network_cannot_have_is_refused(problem):
    with pytest.raises(ValueError, match="needs a model whose every block"):
        methods.build(tiny_config(method="peft", peft__scope="network"), problem.task)
    mixer = dataclasses.replace(problem.task.model, architecture=models.PRESETS["convmixer_768_32"])
    task = dataclasses.replace(problem.task, model=mixer)
    with pytest.raises(ValueError, match="use 'head' or 'bias'"):
        methods.build(tiny_config(method="peft", peft__kind="prompt"), task)


@pytest.mark.parametrize(
    "model, kind, others",
    [
        ("convmixer_768_32", "adapter", "'head' or 'bias'"),
        ("convmixer_768_32", "lora", "'head' or 'bias'"),
        ("scenic_vit", "prompt", "'head', 'bias' or one of lora"),
    ],
)
def test_a_kind_that_the_network_cannot_have_is_refused_before_anything_is_read(model, kind, others):
    config = tiny_config(method="peft", peft__kind=kind, model__name=model)
    with pytest.raises(ValueError, match=f"config.peft.kind='{kind}' is not for {model}: use {others}"):
        methods.check(config)
    methods.check(tiny_config(method="peft", peft__kind="bias", model__name=model))
    methods.check(tiny_config(method="deltamask", peft__kind=kind, model__name=model))


@pytest.fixture
def shallow(monkeypatch):
    """tiny_vit has two blocks: tracing and compiling six, with and without a cut, takes most of a minute."""
    preset = dataclasses.replace(models.PRESETS["tiny_vit"], depth=2)
    monkeypatch.setitem(models.PRESETS, "tiny_vit", preset)


def small(**changes):
    settings = {"train_examples": 36, "test_examples": 30, "model__trained_blocks": 1}
    return tiny_config(**settings | changes)


def test_without_a_cut_the_problem_is_the_same(tmp_path, shallow):
    """What every round trains from, and what bpp counts by, do not depend on where the cut is."""
    cut = set_up(small(), tmp_path)
    whole = set_up(
        small(method="peft", peft__scope="network", prefix_cache=str(tmp_path / "cache")), tmp_path
    )
    np.testing.assert_allclose(whole.inputs["features"][1], cut.inputs["features"][1], atol=1e-5)
    assert whole.inputs["tokens"][0].shape == (36, 32, 32, 3)  # images
    assert whole.task.index == cut.task.index
    embedded = set_up(small(model__trained_blocks=2, prefix_cache=str(tmp_path / "cache")), tmp_path)
    assert embedded.inputs["tokens"][0].shape == (36, 17, 32)  # not the images kept in the same folder


def test_biases_before_the_cut_are_trained_within_a_budget(tmp_path, shallow):
    """End to end on real images: everything moves, clients are judged one by one, the budget ends the run."""
    budget = 40_000
    config = small(method="peft", peft__scope="network", rounds=3, byte_budget=budget)
    config.per_client_evaluation = True
    summary = experiment.run(config, tmp_path)
    tuned = load_file(tmp_path / "peft.safetensors")
    moved = {path for path, array in tuned.items() if np.any(array)}  # a random network's biases are zero
    assert {"embedding/bias", "Transformer/encoderblock_0/LayerNorm_0/bias"} <= moved
    assert sum(array.size for array in tuned.values()) == summary["mean_tuned_parameters"]

    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    spent = np.cumsum([r["uplink_bytes"] + r["downlink_bytes"] for r in records])
    assert spent[-2] < budget <= spent[-1] and len(records) - 1 == summary["rounds"] < 3
    for name, low in (("mean", 0), ("worst", 0), ("variance", 0), ("jain", 1 / 6)):
        assert low <= summary[f"final_client_accuracy_{name}"] <= 1
        assert all(f"client_accuracy_{name}" in record for record in records)
