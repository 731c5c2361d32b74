"""Setting up: the prefix cache changes nothing but time; texts become tokens."""

import dataclasses

import jax
import numpy as np
import pytest

from deltamask_jax.data.features import TokensOnDemand
from deltamask_jax.evaluation import evaluator
from deltamask_jax.federation import cohort
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.heads import with_head
from deltamask_jax.methods import build
from deltamask_jax.models import PRESETS
from deltamask_jax.setup import set_up, set_up_client, set_up_server, with_features
from tests.conftest import cohort_of, tiny_config
from tests.models import tiny_text


def two_rounds(tmp_path, cache, memory=0.0):
    config = tiny_config(prefix_cache=cache, cohort__memory=memory, cohort__chunk=1)
    problem, _ = with_head(set_up(config, tmp_path))
    method = build(config, problem.task)
    state = method.init()
    for number in (1, 2):
        state, result = play_round(problem, method, state, cohort_of(np.arange(6), number))
    return problem, state, result, evaluator(problem, method)(state)


@pytest.fixture(scope="module")
def cached(tmp_path_factory):
    return two_rounds(tmp_path_factory.mktemp("memory"), "memory")


def assert_same(rounds, cached):
    np.testing.assert_array_equal(rounds[1].theta, cached[1].theta)
    assert (rounds[2].train_loss, rounds[3]) == (cached[2].train_loss, cached[3])


def test_without_a_prefix_cache_the_rounds_are_the_same(tmp_path, cached):
    rounds = two_rounds(tmp_path, "off")
    assert isinstance(rounds[0].inputs["tokens"][0], TokensOnDemand)
    assert_same(rounds, cached)


@pytest.mark.parametrize(
    "cache, kind", [("memory", np.ndarray), ("folder", np.memmap), ("off", TokensOnDemand)]
)
def test_examples_too_large_for_a_device_stay_on_the_host_and_the_rounds_are_the_same(
    tmp_path, cached, capsys, monkeypatch, cache, kind
):
    folder = tmp_path / "cache"
    received, train_in_chunks = [], cohort.train_in_chunks

    def watched(engine, training, frozen, start, examples, *arguments):
        received.append(examples["inputs"])
        return train_in_chunks(engine, training, frozen, start, examples, *arguments)

    monkeypatch.setattr(cohort, "train_in_chunks", watched)
    rounds = two_rounds(tmp_path, str(folder) if cache == "folder" else cache, memory=1e-6)
    assert type(rounds[0].inputs["tokens"][0]) is kind
    assert all(isinstance(inputs, np.ndarray) for inputs in received if inputs.ndim > 2)  # not features
    assert_same(rounds, cached)
    if cache == "folder":
        assert len(list(folder.iterdir())) == 2  # train and test
    assert "stay on the host" in capsys.readouterr().out


def test_a_folder_s_examples_go_to_the_devices_when_they_fit(tmp_path, cached):
    rounds = two_rounds(tmp_path, str(tmp_path / "cache"))
    assert isinstance(rounds[0].inputs["tokens"][0], jax.Array)
    assert_same(rounds, cached)


def test_without_a_prefix_cache_a_round_computes_only_what_its_clients_train_on(tmp_path, cached):
    config = tiny_config(prefix_cache="off")
    problem, _ = with_head(set_up(config, tmp_path))
    method, computed, shapes = build(config, problem.task), [], set()
    train, test = problem.inputs["tokens"]

    def compute(rows):
        computed.append(rows)
        return train.compute(rows)

    def watched_train(engine, training, frozen, received, examples, *arguments):
        shapes.add(examples["inputs"].shape)
        return train_in_chunks(engine, training, frozen, received, examples, *arguments)

    train_in_chunks = cohort.train_in_chunks
    watched = problem.inputs | {"tokens": (dataclasses.replace(train, compute=compute), test)}
    on_demand = dataclasses.replace(problem, inputs=watched)
    stored = dataclasses.replace(problem, inputs=cached[0].inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cohort, "train_in_chunks", watched_train)
        for number, clients in enumerate((np.array([1, 4]), np.array([0, 2])), 1):
            first, second = (
                play_round(each, method, method.init(), cohort_of(clients, number))[1]
                for each in (on_demand, stored)
            )
            assert sorted(computed[-1]) == sorted(np.concatenate([problem.parts[k] for k in clients]))
            assert first.train_loss == second.train_loss
    assert len(shapes) == 2  # one for both cohorts, and that of everything


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    tiny_text.write(folder)
    return folder


def config_of_texts(folder, monkeypatch, **changes):
    monkeypatch.setitem(PRESETS, "tiny_bert", tiny_text.TINY)
    settings = {"model__name": "tiny_bert", "model__trained_blocks": 1, "model__max_length": 6, "clients": 3}
    files = {"model__checkpoint": str(folder / "checkpoint"), "data": f"csv:{folder}/reviews.csv"}
    sizes = {"train_examples": 0, "test_examples": 0, "prefix_cache": str(folder / "cache")}
    return tiny_config(**(settings | files | sizes | changes))


def test_a_table_of_texts_is_a_federated_problem(texts, tmp_path, monkeypatch):
    users = {"partition__name": "users", "columns__user": "who"}
    problem = set_up(config_of_texts(texts, monkeypatch, **users), tmp_path)
    tokens = np.asarray(problem.inputs["tokens"][0])
    assert tokens.shape == (40, 6, 16) and len(problem.labels[1]) == 20
    assert tokens[0, :3].any(axis=-1).all() and not tokens[0, 3:].any()  # [CLS] bad [SEP], and padding
    assert len(problem.parts) == 3  # of five users
    problem, _ = with_head(problem)
    method = build(problem.config, problem.task)
    state, result = play_round(problem, method, method.init(), cohort_of(np.arange(3), 1))
    assert result.details["flip_rate"] > 0 and 0 <= evaluator(problem, method)(state) <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parts_before_the_cut_are_trained_from_the_words(texts, tmp_path, monkeypatch, dtype):
    changes = {"method": "peft", "peft__scope": "network", "peft__kind": "bias", "model__dtype": dtype}
    problem = set_up(config_of_texts(texts, monkeypatch, **changes), tmp_path)
    words = problem.inputs["tokens"][0]
    assert words.dtype == np.int32 and np.asarray(words)[0].tolist() == [2, 5, 3, 0, 0, 0]
    again = set_up(problem.config, tmp_path).inputs["tokens"][0]  # from the cache's file
    np.testing.assert_array_equal(words, again)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digits"}, "holds images, tiny_bert reads texts"),
        ({"model__name": "tiny_vit", "model__checkpoint": ""}, "holds texts, tiny_vit reads images"),
        ({"model__checkpoint": ""}, "needs a checkpoint, whose tokenizer"),
        ({"model__max_length": 17}, r"max_length of tiny_bert must be 2\.\.16"),
    ],
)
def test_networks_that_cannot_read_the_data_are_refused(texts, tmp_path, monkeypatch, changes, message):
    with pytest.raises(ValueError, match=message):
        set_up(config_of_texts(texts, monkeypatch, **changes), tmp_path)


def test_a_checkpoint_without_its_tokenizer_is_refused(texts, tmp_path, monkeypatch):
    alone = tmp_path / "model.safetensors"
    alone.write_bytes((texts / "checkpoint" / "model.safetensors").read_bytes())
    with pytest.raises(FileNotFoundError, match="has no tokenizer.json beside it"):
        set_up(config_of_texts(texts, monkeypatch, model__checkpoint=str(alone)), tmp_path)


def test_a_client_holds_its_own_examples_and_the_server_the_tests(tmp_path):
    config = tiny_config(train_examples=60, test_examples=40, clients=3)
    everybody, server = set_up(config, tmp_path), set_up_server(config, tmp_path)
    client = set_up_client(config, 1)
    mine = everybody.parts[1]
    for kind in ("tokens", "features"):
        train, test = everybody.inputs[kind]
        own, none = with_features(client).inputs[kind]
        np.testing.assert_array_equal(own, np.asarray(train)[mine])
        assert len(none) == 0 and len(server.inputs[kind][0]) == 0
        np.testing.assert_array_equal(server.inputs[kind][1], test)
    np.testing.assert_array_equal(client.labels[0], np.asarray(everybody.labels[0])[mine])
    assert [len(part) for part in client.parts] == [len(part) for part in everybody.parts]
    x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    own = set_up_client(config, 1, f"npz:{tmp_path / 'own.npz'}")
    assert [len(part) for part in own.parts] == [0, 20, 0] and len(own.inputs["tokens"][0]) == 20


def test_all_of_a_client_s_own_data_trains(tmp_path, texts, monkeypatch):
    """Nobody asks a client for its test: where the source has none, no fifth is held out."""
    (tmp_path / "own.csv").write_text("text,label\n" + "good,yes\n" * 9 + "bad,no\n")
    own = set_up_client(config_of_texts(texts, monkeypatch), 1, f"csv:{tmp_path}/own.csv", ["no", "yes"])
    assert len(own.parts[1]) == len(own.labels[0]) == 10 and len(own.inputs["tokens"][1]) == 0


def test_a_client_numbers_its_own_data_by_the_servers_classes(tmp_path, texts, monkeypatch):
    x, y = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    names = np.array(["dog", "bird"])
    np.savez(tmp_path / "own.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=names)
    images, mine = tiny_config(clients=3), f"npz:{tmp_path / 'own.npz'}"
    own = set_up_client(images, 1, mine, ("bird", "cat", "dog"))
    assert np.asarray(own.labels[0]).tolist() == [2, 0] * 10
    assert own.task.head["kernel"].shape == (32, 3) and own.class_names == ("bird", "cat", "dog")
    np.savez(tmp_path / "one.npz", x_train=x, y_train=0 * y, x_test=x, y_test=0 * y, class_names=["cat"])
    one = set_up_client(images, 1, f"npz:{tmp_path / 'one.npz'}", ("bird", "cat", "dog"))
    assert np.asarray(one.labels[0]).tolist() == [1] * 20 and one.task.head["kernel"].shape == (32, 3)
    table, written = config_of_texts(texts, monkeypatch), f"csv:{texts}/reviews.csv"
    own = set_up_client(table, 1, written, ["maybe", "yes", "no"])
    assert np.asarray(own.labels[0]).tolist() == [2, 1] * 20
    assert own.task.head["kernel"].shape == (16, 3)
    for config, source, unknown in ((images, mine, "bird"), (table, written, "no")):
        with pytest.raises(
            ValueError, match=f"{source}: the server knows no class '{unknown}', only dog, yes"
        ):
            set_up_client(config, 1, source, ("dog", "yes"))


def test_an_image_of_one_patch_is_told(capsys):
    set_up(tiny_config(model__image_size=8, train_examples=30, test_examples=10), None)
    assert "tiny_vit sees 8 pixels as one patch" in capsys.readouterr().out
    set_up(tiny_config(model__image_size=16, train_examples=30, test_examples=10), None)
    assert "as one patch" not in capsys.readouterr().out
