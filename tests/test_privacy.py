"""Differential privacy: known values of the accounting, what runs spend, the noise, an audit, bad input."""

import dataclasses
import json
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from deltamask_jax import experiment, heads, methods, privacy
from deltamask_jax.data import partition
from deltamask_jax.federation import batches, clients, cohort, faults
from deltamask_jax.federation.downlink import Memory
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.local_training import mask_training, weight_training
from deltamask_jax.task import HEAD_PHASE, MAIN_PHASE, PROBE_PHASE
from tests.conftest import cohort_of, play, tiny_config
from tests.federation.test_cohort import ONE_DEVICE, Engine

needs_accounting = pytest.mark.skipif(not find_spec("dp_accounting"), reason="needs the dp extra")

POISSON = {"participation": 0.5, "client_sampling": "poisson"}

# Known noise multipliers at ε = 5, δ = 1e-3.
KNOWN = {
    "64 clients, 8 a round by Poisson sampling, 50 rounds": (((8 / 64, 50),), 0.917),
    "the same cohort, fixed in size and not amplified": (((1.0, 50),), 4.88),
    "a client that takes part 7 times": (((1.0, 7),), 1.83),
    "781 examples, batch 64, 7 × 10 epochs": (((64 / 781, 7 * privacy.local_steps(781, 10, 64)),), 1.81),
}


@needs_accounting
@pytest.mark.parametrize("releases, noise_multiplier", KNOWN.values(), ids=KNOWN.keys())
def test_known_noise_multipliers(releases, noise_multiplier):
    assert privacy.worst({releases}, noise_multiplier, 1e-3)[0] == pytest.approx(5.0, abs=0.04)


@needs_accounting
def test_noise_is_calibrated_to_whoever_fares_worst():
    candidates = {((1.0, 7),), ((1.0, 5),), ((64 / 781, 100),), ()}
    noise_multiplier = privacy.noise_for(candidates, 5.0, 1e-3)
    assert noise_multiplier == pytest.approx(1.83, abs=0.01)
    spent, whose = privacy.worst(candidates, noise_multiplier, 1e-3)
    assert 4.95 < spent <= 5 and whose == ((1.0, 7),)


@needs_accounting
@pytest.mark.parametrize("epsilon", [48.0, 50.0])
def test_calibration_ends_where_the_two_accountants_meet(epsilon):
    """Between them one says more than `MOST_FOR_PLD`, the other less."""
    noise_multiplier = privacy.noise_for({((1.0, 10),)}, epsilon, 1e-5)
    assert 0.8 * epsilon < privacy.worst({((1.0, 10),)}, noise_multiplier, 1e-5)[0] <= epsilon


@needs_accounting
def test_calibration_ends_where_pld_finds_nothing_to_lose(monkeypatch):
    """By PLD a round of a thousandth is below delta, whatever the noise."""
    epsilon_of, asked, releases = privacy._epsilon, [], ((0.001, 1),)

    def counted(kind, *arguments):
        asked.append(kind)
        assert asked.count("pld") < 30, "it does not end"
        return epsilon_of(kind, *arguments)

    monkeypatch.setattr(privacy, "_epsilon", counted)
    noise_multiplier = privacy.noise_for({releases}, 1.0, 0.01)
    assert noise_multiplier > 0 and privacy.worst({releases}, noise_multiplier, 0.01)[0] <= 1


SIZES = np.array([1, 20, 7, 8, 16, 3])


@pytest.mark.parametrize(
    "changes, expected",
    [
        # Batches of 8: of 16 examples at 0.5, of 20 at 0.4; twice two epochs, and the head's two.
        ({"dp__level": "example"}, {((1.0, 6),), ((0.5, 12),), ((0.4, 15),)}),
        ({"dp__level": "example", "head__init": "he"}, {((1.0, 4),), ((0.5, 8),), ((0.4, 10),)}),
        ({"dp__level": "client"}, {((1.0, 3),)}),  # all take part, in the head's round too
        ({"dp__level": "client", **POISSON}, {((1.0, 1), (0.5, 2))}),
    ],
)
def test_how_often_data_is_used(changes, expected):
    config = tiny_config(local_epochs=2, **changes)
    assert privacy.releases(config, np.array([1, 20, 7, 8, 16, 3]), 2) == expected


def test_cohorts_of_a_fixed_size_are_counted_as_they_are_drawn():
    config = tiny_config(dp__level="client", participation=0.5, head__init="he")
    drawn = [partition.cohort(6, 0.5, config.seed, number) for number in range(1, 8)]
    most = np.bincount(np.concatenate(drawn)).max()
    assert privacy.releases(config, np.ones(6, int), 7) == {((1.0, int(most)),)} and most < 7


def gradients_of(features, batch, clip=1e9, noise_multiplier=0.0, seed=0):
    """DP-SGD's gradient of w · x, which is x, for padded examples x f32[b, 3]."""
    noisy = privacy.noisy_gradient(clip, noise_multiplier, expected=4, microbatch=4)
    training = weight_training(lambda _, w, batch: w @ batch["inputs"][0], optax.identity(), gradient=noisy)
    batch = {"inputs": jnp.asarray(features), "weights": jnp.asarray(batch)}
    received = {"weights": jnp.zeros(3), "learning_rate": 1.0}
    (weights, _), loss = training.step((), received, training.init((), received, ()), batch, KEY(seed))
    return -4 * np.asarray(weights), loss


KEY = jax.random.key


def test_an_example_moves_the_sum_by_the_clip_at_most():
    features = np.array([[3.0, 4, 0], [0, 0.1, 0], [np.inf, 1, 0], [1e30, 0, 1e30]], np.float32)
    weights = np.ones(4, np.float32)
    total, _ = gradients_of(features, weights, clip=1.0)
    only = [np.where(np.arange(4)[:, None] == k, features, 0) for k in range(4)]
    alone = [gradients_of(its, weights, clip=1.0)[0] for its in only]
    np.testing.assert_allclose(total, sum(alone), atol=1e-6)
    assert all(np.linalg.norm(x) <= 1 + 1e-6 for x in alone)
    np.testing.assert_allclose(alone[0], [0.6, 0.8, 0], rtol=1e-6)


def test_without_noise_and_clip_it_is_the_plain_gradient():
    features = np.random.default_rng(0).normal(size=(6, 3)).astype(np.float32)
    total, loss = gradients_of(features, np.ones(6, np.float32))
    np.testing.assert_allclose(total, features.sum(0), rtol=1e-5)
    assert loss == 0


def test_parts_behind_the_last_example_are_left_out():
    """This loss ignores weights, so the sum says which parts of four were computed."""
    features = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)
    for last, computed in ((0, 0), (3, 4), (4, 4), (5, 8), (12, 12)):
        total, _ = gradients_of(features, (np.arange(12) < last).astype(np.float32))
        np.testing.assert_allclose(total, features[:computed].sum(0), atol=1e-5)


def clients_of_nothing(clients, **changes):
    """Updates of clients that hold the same examples, without a gradient: one step of noise."""
    noisy = privacy.noisy_gradient(clip=2.0, noise_multiplier=3.0, expected=4, microbatch=2)
    training = weight_training(lambda _, w, batch: 0 * jnp.sum(w), optax.identity(), gradient=noisy)
    asked = cohort_of(np.arange(clients), **changes)
    plan = batches.poisson_schedule([np.arange(3)] * clients, asked, epochs=1, batch_size=4, microbatch=2)
    examples = {"inputs": jnp.zeros((3, 1)), "labels": jnp.zeros(3, jnp.int32)}
    engine = Engine(ONE_DEVICE, chunk=clients)
    received = {"weights": jnp.zeros(4000), "learning_rate": 1.0}
    return cohort.train(engine, training, (), received, examples, plan, (), asked.keys())[0]


def test_noise_of_vmapped_clients_is_their_own():
    first, second = clients_of_nothing(2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.1
    np.testing.assert_allclose([first.std(), second.std()], 3 * 2 / 4, rtol=0.05)
    np.testing.assert_array_equal(clients_of_nothing(2)[1], second)
    assert abs(np.corrcoef(first, clients_of_nothing(2, number=2)[0])[0, 1]) < 0.1


def test_the_server_adds_noise_once_to_a_sum_of_clipped_updates():
    quiet, loud = (privacy.noisy_mean(2.0, z, expected=8, everyone=10) for z in (1e-9, 1.5))
    updates, like, asked = (
        [{"w": np.full(4000, x, np.float32)} for x in (1.0, -1e-6, 3.0)],
        None,
        cohort_of([1]),
    )
    like = {"w": np.zeros(4000, np.float32)}
    unit = 1 / np.sqrt(4000)
    np.testing.assert_allclose(quiet(updates, asked, like)["w"], (2 * unit - 1e-6 + 2 * unit) / 8, rtol=1e-4)
    noise = loud([], asked, like)["w"]
    np.testing.assert_allclose(noise.std(), 1.5 * 2 / 8, rtol=0.05)
    np.testing.assert_allclose(
        loud(updates, asked, like)["w"] - quiet(updates, asked, like)["w"], noise, atol=1e-6
    )
    assert abs(np.corrcoef(noise, loud([], cohort_of([1], 2), like)["w"])[0, 1]) < 0.1
    head = loud(None, cohort_of([1], phase=HEAD_PHASE), like)["w"]  # expects everyone
    np.testing.assert_allclose(head.std(), 1.5 * 2 / 10, rtol=0.05)


EXAMPLE = {"dp__level": "example", "dp__noise_multiplier": 0.5, "dp__microbatch": 4}
CLIENT = {"dp__level": "client", "dp__noise_multiplier": 0.5}


@pytest.mark.parametrize("level", [EXAMPLE, CLIENT], ids=["example", "client"])
def test_backends_give_the_same_private_round(problem, level):
    states = [
        play(problem, 1, method="linear_probe", cohort__backend=backend, cohort__chunk=chunk, **level)[
            2
        ].weights
        for backend, chunk in (("loop", 1), ("vmap", 4))
    ]
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5), *states)
    plain = play(problem, 1, method="linear_probe")[2].weights
    assert np.abs(states[0]["kernel"] - plain["kernel"]).max() > 1e-3


def test_noise_and_clip_of_masks_are_of_logits():
    """One step of one example, whose gradient of the logits is far longer than the clip."""
    index = FlatIndex.create({"layer": {"kernel": jnp.full((4000, 1), 0.5)}}, ".*kernel")
    received = {"theta": jnp.full(4000, 40_000, jnp.uint16), "head": (), "learning_rate": 1.0}
    frozen = {"params": {"layer": {"kernel": jnp.full((4000, 1), 0.5)}}}
    batch = {"inputs": jnp.full((1, 4000), 9.0), "labels": jnp.zeros(1, jnp.int32), "weights": jnp.ones(1)}

    def forward(params, head, inputs):
        return jnp.concatenate([0 * inputs[:, :1], inputs @ params["layer"]["kernel"]], axis=1)

    def moved(noise_multiplier):
        noisy = privacy.noisy_gradient(2.0, noise_multiplier, expected=4, microbatch=1)
        training = mask_training(forward, index, optax.identity(), 0.01, lambda *_: (), gradient=noisy)
        before = training.init(frozen, received, ())
        after, _ = training.step(frozen, received, before, batch, KEY(0))
        return index.ravel(before[0]) - index.ravel(after[0])

    quiet = moved(1e-9)
    assert np.linalg.norm(quiet) == pytest.approx(2 / 4, rel=1e-3)
    np.testing.assert_allclose((moved(3.0) - quiet).std(), 3 * 2 / 4, rtol=0.05)


def test_a_round_of_nobody_is_noise_at_the_server_and_nothing_at_clients(problem):
    for level, moves in ((EXAMPLE, False), (CLIENT, True)):
        config = tiny_config(method="linear_probe", **level)
        nobody = dataclasses.replace(problem, config=config)
        method = methods.build(config, problem.task)
        state, result = play_round(nobody, method, method.init(), cohort_of(np.arange(0)), Memory.at_start(6))
        assert np.any(state.weights["kernel"] != method.init().weights["kernel"]) == moves
        news = None if moves else 0  # of a state that has not moved there is nothing to tell
        assert (result.merged, result.uplink_bytes, result.payload, result.news_bytes) == (0, 0, b"", news)


RUN = {
    "method": "linear_probe",
    "head__init": "he",
    "model__trained_blocks": 1,
    "dp__delta": 1e-3,
    "rounds": 2,
}


@pytest.fixture
def run(problem, monkeypatch):
    """`experiment.run` on the tiny problem, without its bracket."""
    made = dataclasses.replace(problem, engine=Engine(ONE_DEVICE))
    monkeypatch.setattr(
        experiment, "set_up", lambda config, workdir: dataclasses.replace(made, config=config)
    )
    monkeypatch.setattr(experiment, "linear_probe_accuracy", lambda _: 0.0)
    return experiment.run


def lines_of(folder):
    timeless = lambda line: {k: v for k, v in json.loads(line).items() if not k.endswith("seconds")}  # noqa: E731
    return list(map(timeless, (folder / "metrics.jsonl").read_text().splitlines()))


@needs_accounting
@pytest.mark.parametrize("level", ["example", "client"])
def test_a_resumed_run_is_the_uninterrupted_one_and_keeps_its_noise(tmp_path, monkeypatch, run, level):
    config = tiny_config(**RUN, dp__level=level, participation=0.5, client_sampling="poisson")
    monkeypatch.setattr(privacy, "noise_for", lambda *_: 2.0)
    run(config, tmp_path / "whole")
    epsilons = [line["epsilon"] for line in lines_of(tmp_path / "whole")]
    assert epsilons[0] == 0 and np.all(np.diff(epsilons) >= 0) and 0 < epsilons[-1] <= 5
    assert json.loads((tmp_path / "whole" / "summary.json").read_text())["epsilon"] == epsilons[-1]

    class Crash(BaseException):
        pass

    def crash(problem, method, state, number, memory):
        if number == 2:
            raise Crash
        return play_until_enough(problem, method, state, number, memory)

    play_until_enough = experiment.play_until_enough
    with monkeypatch.context() as patch, pytest.raises(Crash):
        patch.setattr(experiment, "play_until_enough", crash)
        run(config, tmp_path / "part")
    monkeypatch.setattr(privacy, "noise_for", lambda *_: pytest.fail("calibrated again"))
    run(config, tmp_path / "part")
    assert lines_of(tmp_path / "part") == lines_of(tmp_path / "whole")
    config.dp.epsilon = 8.0
    with pytest.raises(
        ValueError, match=r"holds a run of another config \(dp.epsilon is 5.0 there and 8.0 here"
    ):
        run(config, tmp_path / "part")


@needs_accounting
def test_a_run_stops_before_it_spends_more_than_its_budget(tmp_path, run, capsys):
    config = tiny_config(**RUN, dp__level="client", dp__noise_multiplier=0.9)
    summary = run(config, tmp_path)
    assert (summary["rounds"], len(lines_of(tmp_path))) == (1, 2)
    assert summary["epsilon"] < 5 < privacy.worst({((1.0, 2),)}, 0.9, 1e-3)[0]
    assert "the privacy budget is spent after round 1" in capsys.readouterr().out


def test_a_large_delta_is_explained():
    assert privacy.warning_about(1e-6, "example", 50_000) == ""
    said = privacy.warning_about(1e-3, "example", 50_000)
    assert said.startswith("config.dp.delta=0.001 is not below 1/50,000") and "publish 50 of them" in said


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dp__epsilon": 0.0}, "config.dp.epsilon=0.0: must be at least 0.001"),
        ({"dp__epsilon": -1.0}, "config.dp.epsilon=-1.0: must be at least"),
        ({"method": "feedsign"}, "'feedsign' sends signs of differences of losses: use one of"),
        ({"method": "fedcof", "rounds": 1, "head__init": "he"}, "'fedcof' sends means of features"),
        ({"dp__level": "client"}, "method 'deltamask' sends none: use dp.level='example'"),
        ({"head__init": "fit"}, "sends statistics of the examples without noise: .* use 'lp'"),
        ({"min_clients": 2}, "no round is played again"),
    ],
)
def test_what_cannot_be_private_is_refused_before_training(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        experiment.run(tiny_config(**{"dp__level": "example"} | changes), tmp_path)


def test_without_the_extra_and_in_a_real_federation_it_is_refused(tmp_path, monkeypatch):
    if find_spec("dp_accounting"):
        with pytest.raises(ValueError, match="differential privacy is simulated only"):
            experiment.run(tiny_config(**EXAMPLE), tmp_path, ask=lambda *_: None)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(
        ValueError, match=r'^config.dp needs dp-accounting: pip install "deltamask_jax\[dp\]"$'
    ):
        experiment.run(tiny_config(**EXAMPLE), tmp_path)


def test_users_are_protected_where_each_is_a_client():
    users, config = np.array([0, 1, 2, 2]), tiny_config(**CLIENT, clients=2)
    assert "protects a client, and no user" in privacy.check_users(config, users)
    config.partition.name = "users"
    with pytest.raises(ValueError, match="puts 3 users on them, .* use --config.clients=3"):
        privacy.check_users(config, users)
    config.clients = 3
    assert privacy.check_users(config, users) == privacy.check_users(config, None) == ""
    config.dp.level, config.clients = "example", 2
    assert privacy.check_users(config, users) == ""


RUNS, CANARY = 1500, np.array([1.0, 0, 0])


def canary_seen(noise_multiplier, batch_size, steps, *, present):
    """How far each of many runs went along the canary's gradient: every run is a client of one cohort.

    The canary is one example more, of the largest gradient that is allowed; the others have nothing there.
    """
    noisy = privacy.noisy_gradient(1.0, noise_multiplier, expected=1, microbatch=2)
    training = weight_training(lambda _, w, batch: -w @ batch["inputs"][0], optax.identity(), gradient=noisy)
    others = jnp.asarray([[0, 1.0, 0], [0, 0, 1.0], [0, -1.0, 0]])
    canary = CANARY if present else 0 * CANARY
    examples = {"inputs": jnp.vstack([others, canary]), "labels": jnp.zeros(4, jnp.int32)}
    asked = cohort_of(np.arange(RUNS), 1 + present)
    epochs = steps * batch_size // 4
    plan = batches.poisson_schedule(
        [np.arange(4)] * RUNS, asked, epochs=epochs, batch_size=batch_size, microbatch=2
    )
    assert (plan.steps == steps).all()
    engine = Engine(ONE_DEVICE, chunk=RUNS)
    received = {"weights": jnp.zeros(3), "learning_rate": 1.0}
    return cohort.train(engine, training, (), received, examples, plan, (), asked.keys())[0] @ CANARY


def lower_bound(without, with_canary, delta):
    """A lower bound on ε with 95 % confidence: the best threshold of the first half, tested on the second
    (Jagielski et al., arXiv 2006.07709)."""

    def bound(threshold, without, with_canary, level):
        hits, false = np.sum(with_canary > threshold), np.sum(without > threshold)
        low = stats.beta.ppf(level, hits, len(with_canary) - hits + 1)
        high = stats.beta.ppf(1 - level, false + 1, len(without) - false)
        return np.log(max(low - delta, 1e-12) / high)

    half = RUNS // 2
    tried = np.quantile(with_canary[:half], np.linspace(0.02, 0.98, 49))
    best = max(tried, key=lambda t: bound(t, without[:half], with_canary[:half], 0.2))
    return bound(best, without[half:], with_canary[half:], 0.025)


@needs_accounting
@pytest.mark.parametrize("batch_size, steps, least", [(4, 2, 1.5), (2, 4, 0.2)], ids=["all", "Poisson"])
def test_an_audit_finds_no_more_than_is_claimed_and_finds_missing_noise(batch_size, steps, least):
    """The canary is there or not, 1,500 runs each; what tells the two apart bounds ε from below."""
    claimed = privacy.worst({((batch_size / 4, steps),)}, 1.0, 1e-2)[0]
    found = {
        z: lower_bound(*(canary_seen(z, batch_size, steps, present=here) for here in (False, True)), 1e-2)
        for z in (1.0, 1e-3)
    }
    assert least < found[1.0] < claimed < found[1e-3], (found, claimed)


def test_the_heads_round_is_counted_by_its_own_epochs():
    config = tiny_config(dp__level="example", local_epochs=2, head__epochs=5)
    assert privacy.releases(config, np.full(6, 16), 3) == {((0.5, 5 * 2 + 3 * 2 * 2),)}


def test_a_mechanism_takes_its_numbers_from_the_config(monkeypatch):
    monkeypatch.setattr(privacy, "noisy_mean", lambda *numbers: numbers)
    monkeypatch.setattr(privacy, "noisy_gradient", lambda *numbers: numbers)
    numbers = {"dp__clip": 0.7, "dp__noise_multiplier": 1.3, "dp__microbatch": 4, "participation": 0.4}
    fixed = privacy.mechanism(tiny_config(dp__level="client", **numbers))
    poisson = privacy.mechanism(tiny_config(dp__level="client", client_sampling="poisson", **numbers))
    assert fixed.mean == (0.7, 1.3, 2, 6) and poisson.mean == (0.7, 1.3, pytest.approx(2.4), 6)
    example = privacy.mechanism(tiny_config(dp__level="example", **numbers))
    assert example.gradient == (0.7, 1.3, 8, 4)  # of batches of 8


def test_noise_is_apart_from_what_else_a_step_draws():
    noise, _ = gradients_of(np.zeros((4, 3), np.float32), np.ones(4, np.float32), 1.0, noise_multiplier=1.0)
    assert noise.all() and not np.allclose(noise, jax.random.normal(KEY(0), 3), rtol=0.01)


class Private(Exception):
    """What the mechanism's own functions raise, to be seen."""


@pytest.fixture
def raising(monkeypatch):
    def raises(*_):
        raise Private

    for name in ("noisy_gradient", "noisy_mean"):
        monkeypatch.setattr(privacy, name, lambda *_: raises)


def step(method):
    received = method.start(method.init(), cohort_of([0]))
    carry = method.client.init(method.frozen, received, ())
    return method.client.step(method.frozen, received, carry, {}, KEY(0))


@pytest.mark.parametrize("name", [*methods.MASK_METHODS, *methods.SEND_VALUES])
def test_whatever_trains_takes_its_gradients_from_the_mechanism(problem, raising, name):
    method = methods.build(tiny_config(method=name, peft__kind="bias", **EXAMPLE), problem.task)
    with pytest.raises(Private):
        step(method)


@pytest.mark.parametrize("name", methods.SEND_VALUES)
def test_whatever_the_server_averages_goes_through_the_mechanism(problem, raising, name):
    method = methods.build(tiny_config(method=name, peft__kind="bias", **CLIENT), problem.task)
    with pytest.raises(Private):
        method.merge(method.init(), [], cohort_of([]))


def test_the_round_of_the_head_is_as_private_as_the_others(problem, raising):
    for level, use in ((EXAMPLE, step), (CLIENT, lambda its: its.merge(its.init(), [], cohort_of([])))):
        _, method = heads.round_of_head(dataclasses.replace(problem, config=tiny_config(**level)))
        with pytest.raises(Private):
            use(method)


def test_batches_of_the_head_and_of_rounds_are_drawn_as_they_are_counted(problem, monkeypatch):
    def draws(error):
        def draw(*_, **__):
            raise error

        return draw

    monkeypatch.setattr(batches, "poisson_schedule", draws(Private))
    monkeypatch.setattr(batches, "schedule", draws(LookupError))
    config = tiny_config(method="linear_probe", **EXAMPLE)
    private, method = dataclasses.replace(problem, config=config), methods.build(config, problem.task)
    drawn = {HEAD_PHASE: Private, MAIN_PHASE: Private, PROBE_PHASE: LookupError}  # the bracket is not private
    for phase, error in drawn.items():
        with pytest.raises(error):
            play_round(private, method, method.init(), cohort_of([1, 4], phase=phase))


def test_a_client_s_weight_says_how_many_examples_it_has_and_not_how_many_were_drawn(problem):
    config = tiny_config(method="linear_probe", **EXAMPLE)
    private, method = dataclasses.replace(problem, config=config), methods.build(config, problem.task)
    asked = cohort_of([1, 4])  # of 20 and 16 examples, in batches of 8
    plan = batches.poisson_schedule(problem.parts, asked, epochs=1, batch_size=8, microbatch=4)
    assert (faults.examples_seen(plan) != [20, 16]).any()
    assert clients.ask(private, method, method.init(), asked).cohort.weights() == [20, 16]
