"""Partitioners: every example exactly once, whatever the seed, labels and sizes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure
from PIL import Image

from deltamask_jax.data import partition

LABELS = np.random.default_rng(0).integers(0, 10, 1437).astype(np.int32)

labels_of = st.lists(st.integers(0, 6), min_size=12, max_size=200).map(np.array)
seeds = st.integers(0, 2**32 - 1)


def _each_once(parts: list[np.ndarray], n: int) -> bool:
    return np.array_equal(np.sort(np.concatenate(parts)), np.arange(n)) and all(
        np.array_equal(part, np.sort(part)) for part in parts
    )


@settings(max_examples=60, deadline=None)
@given(labels=labels_of, clients=st.integers(1, 4), alpha=st.floats(0.3, 100), seed=seeds)
def test_dirichlet_uses_every_example_once_and_keeps_the_minimum(labels, clients, alpha, seed):
    parts = partition.split("dirichlet", labels, clients, alpha=alpha, min_examples=1, seed=seed)
    assert len(parts) == clients and _each_once(parts, len(labels))
    assert min(map(len, parts)) >= 1


@settings(max_examples=60, deadline=None)
@given(labels=labels_of, clients=st.integers(1, 12), seed=seeds)
def test_iid_sizes_differ_by_at_most_one(labels, clients, seed):
    parts = partition.split("iid", labels, clients, seed=seed)
    assert _each_once(parts, len(labels))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=60, deadline=None)
@given(
    per_class=st.integers(12, 30),
    classes=st.integers(1, 6),
    clients=st.integers(6, 12),
    held=st.integers(1, 6),
    seed=seeds,
)
def test_pathological_gives_exactly_so_many_classes(per_class, classes, clients, held, seed):
    held = min(held, classes)
    labels = np.repeat(np.arange(classes) * 2, per_class)  # every other class number is unused
    parts = partition.split("pathological", labels, clients, classes_per_client=held, seed=seed)
    assert _each_once(parts, len(labels))
    assert all(len(np.unique(labels[part])) == held for part in parts)
    holders = (partition.histogram(parts, labels)[:, ::2] > 0).sum(axis=0)
    assert holders.max() - holders.min() <= 1


@settings(max_examples=60, deadline=None)
@given(users=st.lists(st.integers(5, 30), min_size=30, max_size=80), seed=seeds)
def test_users_stay_whole(users, seed):
    users = np.array(users)
    clients = min(4, len(np.unique(users)))
    parts = partition.split("users", np.zeros(len(users), int), clients, users=users, seed=seed)
    assert _each_once(parts, len(users))
    seen = [set(users[part]) for part in parts]
    assert sum(map(len, seen)) == len(set().union(*seen))


def test_one_client_a_user():
    users = np.array([7, 7, 3, 9, 3, 7])
    parts = partition.split("users", np.zeros(6, int), 3, users=users)
    assert sorted(part.tolist() for part in parts) == [[0, 1, 5], [2, 4], [3]]


@pytest.mark.parametrize("name", ["dirichlet", "iid", "pathological", "users"])
def test_the_seed_decides(name):
    def split(seed):
        users = np.arange(len(LABELS)) // 3
        parts = partition.split(name, LABELS, 30, users=users, min_examples=10, seed=seed)
        return [part.tolist() for part in parts]

    assert split(0) == split(0) != split(1)


def test_small_alpha_is_more_uneven():
    def classes_held(alpha):
        parts = partition.split("dirichlet", LABELS, 30, alpha=alpha, min_examples=10)
        assert min(map(len, parts)) >= 10  # one draw in 400 does that at alpha = 0.1
        return (partition.histogram(parts, LABELS) > 0).sum(axis=1).mean()

    assert classes_held(0.1) < 6 < 9 < classes_held(10)


def test_impossible_splits_say_what_to_change(monkeypatch):
    monkeypatch.setattr(partition, "_TRIES", 50)

    def refuse(match, name, clients=30, **options):
        with pytest.raises(ValueError, match=match):
            partition.split(name, LABELS, clients, **options)

    refuse("lower num_clients or min_examples", "iid", 2000)
    refuse("lower num_clients or min_examples", "iid", min_examples=48)
    refuse("raise alpha", "dirichlet", alpha=0.01, min_examples=40)
    refuse("alpha must be positive", "dirichlet", alpha=0)
    refuse("classes_per_client must be in 1 … 10", "pathological", classes_per_client=11)
    refuse("raise classes_per_client", "pathological", 3, classes_per_client=2)
    refuse("names no users", "users")
    refuse("2 users cannot make 30", "users", users=np.arange(len(LABELS)) % 2)
    refuse("did you mean 'dirichlet'", "dirchlet")
    refuse("at least 1", "iid", 0)


def test_a_large_split_is_drawn_less_often(monkeypatch):
    for shares, draws in ((36_000, 120), (1, 100), (10**9, 150)):
        monkeypatch.setattr(partition, "_TRIES", 150)
        monkeypatch.setattr(partition, "_SHARES", shares)  # of 30 clients and 10 classes
        with pytest.raises(ValueError, match=f"^{draws} draws"):
            partition.split("dirichlet", LABELS, 30, alpha=0.01, min_examples=40)


@settings(max_examples=60, deadline=None)
@given(
    train=labels_of,
    test=st.lists(st.integers(0, 8), max_size=150),
    clients=st.integers(1, 8),
    seed=seeds,
)
def test_test_split_is_within_one_example_of_exact(train, test, clients, seed):
    test = np.array(test, int)
    parts = partition.split("iid", train, clients, seed=seed)
    shares = partition.test_split(parts, train, test, seed)
    assert len(shares) == clients and _each_once(shares, len(test))
    held = partition.histogram(parts, train, 9)
    got = partition.histogram(shares, test, 9)
    total = held.sum(axis=0)
    share = np.where(total > 0, held / np.maximum(total, 1), 1 / clients)
    assert np.abs(got - share * np.bincount(test, minlength=9)).max(initial=0) < 1 + 1e-9


def test_test_split_favours_nobody():
    parts = np.split(np.arange(100), 10)
    zeros = np.zeros(100, int)
    sizes = [
        [len(share) for share in partition.test_split(parts, zeros, zeros[:5], seed)] for seed in range(200)
    ]
    assert np.max(sizes) == 1 and np.abs(np.mean(sizes, axis=0) - 0.5).max() < 0.12


def test_test_split_follows_the_training_distribution():
    parts = partition.split("dirichlet", LABELS, 10, alpha=0.3, min_examples=10)
    shares = partition.test_split(parts, LABELS, LABELS)  # a test set just like the training set
    np.testing.assert_array_equal(partition.histogram(shares, LABELS), partition.histogram(parts, LABELS))


@settings(max_examples=100, deadline=None)
@given(clients=st.integers(1, 100), rho=st.floats(0.001, 1), seed=seeds, number=st.integers(0, 999))
def test_cohort_size_and_order(clients, rho, seed, number):
    chosen = partition.cohort(clients, rho, seed, number)
    assert 1 <= len(chosen) <= clients and abs(len(chosen) - rho * clients) <= max(0.5, 1)
    assert (np.diff(chosen) > 0).all() and chosen[0] >= 0 and chosen[-1] < clients
    np.testing.assert_array_equal(chosen, partition.cohort(clients, rho, seed, number))


def test_cohorts_change_with_round_and_seed_and_reach_everyone():
    cohorts = [tuple(partition.cohort(30, 0.2, 0, number)) for number in range(60)]
    assert len(set(cohorts)) > 55
    assert set().union(*cohorts) == set(range(30))
    assert cohorts[3] != tuple(partition.cohort(30, 0.2, 1, 3))
    assert len(partition.cohort(30, 1.0, 0, 0)) == 30
    with pytest.raises(ValueError, match="participation"):
        partition.cohort(30, 0.0, 0, 0)


@pytest.mark.parametrize("classes", [10, 40])
def test_save_writes_the_split_and_draws_it(tmp_path, classes):
    labels = np.arange(400) % classes
    parts = partition.split("dirichlet", labels, 12, alpha=1.0)
    partition.save(tmp_path, parts, labels, [f"class {k}" for k in range(classes)])
    saved = json.loads((tmp_path / "split.json").read_text())
    assert saved["class_names"][3] == "class 3"
    assert [client["indices"] for client in saved["clients"]] == [part.tolist() for part in parts]
    assert [client["examples"] for client in saved["clients"]] == [len(part) for part in parts]
    counts = partition.histogram(parts, labels, classes)
    assert [client["labels"] for client in saved["clients"]] == counts.tolist()
    with Image.open(tmp_path / "split.png") as picture:
        assert picture.width > 600 and len(np.unique(np.asarray(picture.convert("P")))) > 10


def test_class_names_are_text_and_not_markup(tmp_path):
    names = ["$5_$10", "_hidden", r"$\frac{$", "two\nlines", "ant"]
    labels = np.arange(20) % 5
    partition.save(tmp_path, partition.split("iid", labels, 4), labels, names)
    assert json.loads((tmp_path / "split.json").read_text())["class_names"] == names
    counts = partition.histogram(partition.split("iid", labels, 4), labels)
    (legend,) = partition._draw(counts, names).legends
    assert [text.get_text() for text in legend.get_texts()][::-1] == names


def test_a_legend_is_drawn_where_it_can_be_read():
    for classes, patches in ((30, 30), (31, 30), (3000, 30)):
        figure = partition._draw(np.ones((2, classes), int), [str(k) for k in range(classes)])
        assert len(figure.legends) == (classes <= 30) and len(figure.axes[0].patches) == patches


@pytest.mark.parametrize("alpha", [0.0, -1.0, np.inf, np.nan])
def test_dirichlet_wants_a_positive_finite_alpha(alpha):
    with pytest.raises(ValueError, match="alpha must be positive and finite, got .*'iid'"):
        partition.split("dirichlet", LABELS, 5, alpha=alpha)


def test_another_attempt_asks_another_cohort():
    cohorts = [partition.cohort(30, 0.2, 0, 3, attempt).tolist() for attempt in (0, 1, 2)]
    assert len({*map(str, cohorts)}) == 3


def test_poisson_cohorts_hold_each_client_at_its_rate():
    """Amplification by sampling is counted at this rate."""
    cohorts = [partition.cohort(20, 0.1, 0, number, sampling="poisson") for number in range(500)]
    asked = np.bincount(np.concatenate(cohorts), minlength=20) / 500
    np.testing.assert_allclose(asked, 0.1, atol=5 * np.sqrt(0.09 / 500))
    assert {len(cohort) for cohort in cohorts} >= {0, 1, 2, 3, 4}


@pytest.mark.parametrize("rho, size", [(0.01, 1), (0.24, 2), (0.25, 3), (0.34, 3), (1.0, 10)])
def test_cohorts_of_fixed_size_are_rounded_half_up(rho, size):
    assert partition.cohort_size(10, rho) == len(partition.cohort(10, rho, 0, 1)) == size


def test_the_largest_users_are_dealt_first_so_that_clients_come_out_alike():
    users = np.repeat(np.arange(9), [1, 1, 1, 1, 8, 1, 1, 1, 1])
    for seed in range(10):
        parts = partition.split("users", np.zeros(16, int), 2, users=users, seed=seed)
        assert [len(part) for part in parts] == [8, 8]


@pytest.mark.parametrize("clients", [3, 300])
def test_bars_are_stacked_to_what_clients_hold(clients):
    counts = np.zeros((clients, 3), int)
    counts[:3] = [[3, 0, 2], [0, 4, 2], [0, 0, 0]]
    axes = Figure().subplots()
    partition.stack_bars(axes, counts, ["red", "lime", "blue"])
    (picture,) = axes.images
    pixels = picture.get_array()
    each = pixels.shape[1] // clients
    shift = 0.5 / each if each > 1 else 0
    assert picture.get_extent() == [shift - 0.5, shift + clients - 0.5, 0, 6] and picture.origin == "lower"
    middles = pixels[:, each // 2 :: each]  # of each client's bar
    shares = {name: (middles == colour).all(-1).sum(0) / len(pixels) for name, colour in COLOURS.items()}
    np.testing.assert_allclose(shares["red"][:3], [3 / 6, 0, 0], atol=0.01)
    np.testing.assert_allclose(shares["lime"][:3], [0, 4 / 6, 0], atol=0.01)
    np.testing.assert_allclose(shares["blue"][:3], [2 / 6, 2 / 6, 0], atol=0.01)
    assert (middles[0, :2] == [COLOURS["red"], COLOURS["lime"]]).all()  # from below
    assert each == 1 or not pixels[:, each - 1 :: each].any()  # gaps where there is room


def test_a_picture_of_many_clients_stays_small():
    axes, counts = Figure().subplots(), np.ones((50_000, 2), int)
    counts[49_999] = [5, 4]  # is not drawn, and counts for the height
    partition.stack_bars(axes, counts, ["red", "blue"])
    (picture,) = axes.images
    assert picture.get_array().shape[1] == 2000 and picture.get_extent() == [-0.5, 49_999.5, 0, 9]


COLOURS = {"red": (1, 0, 0, 1), "lime": (0, 1, 0, 1), "blue": (0, 0, 1, 1)}
