"""The way down: whoever holds a state and is sent the news holds the server's bit for bit, and its cost."""

import dataclasses
from functools import partial

import jax
import numpy as np
import pytest

from deltamask_jax import methods
from deltamask_jax.codecs import SERVER, Context, PayloadError, bundle, envelope
from deltamask_jax.data import partition
from deltamask_jax.federation import attacks, batches, downlink, faults
from deltamask_jax.federation.downlink import NOTHING, Memory
from deltamask_jax.federation.rounds import play_round, play_until_enough
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods.votes import Votes
from tests.codecs.cases import sealed
from tests.conftest import cohort_of, tiny_config
from tests.methods.test_golden_rounds import drawn

CLIENTS = 12
FLIPS = [{"mask__lambda0": 1.1, "mask__aggregator": "running"}]  # a prior that float32 rounds
FLIPS += [
    {"codec__name": codec, "mask__uniforms": uniforms, "mask__aggregator": aggregator}
    for codec in ("bfuse", "side_info")
    for uniforms in ("shared", "per_client")
    for aggregator in ("beta", "control_variate", "running")
]
ROBUST = [
    {"robust__aggregator": robust, "mask__uniforms": uniforms, "mask__aggregator": aggregator}
    for robust in ("clip", "trimmed", "median")
    for uniforms, aggregator in (("shared", "beta"), ("per_client", "running"))
]
MASKS = [{"method": "fedpm", "mask__aggregator": x} for x in ("beta", "control_variate", "running")]
MASKS += [
    {"method": name, "mask__aggregator": x} for name in ("fedmask", "klms") for x in ("beta", "running")
]
MASKS += [{"method": "deepreduce", "deepreduce__policy": policy} for policy in ("P0", "P1", "P2")]
WEIGHTS = [{"method": name} for name in ("fedavg", "eden", "drive", "qsgd", "signsgd")]
# Float32 of more than two clients is no news, see below.
ALL_ANSWER = {"faults__dropout": 0.0, "attack__share": 0.0}
WEIGHTS += [{"method": "linear_probe", "participation": 0.17} | ALL_ANSWER]
ROUNDED = [
    {"method": "peft"},
    {"method": "fedavg", "fedavg__server": "adam"},
    {"method": "fedavg", "fedavg__server": "yogi"},
    {"method": "fedavg", "fedavg__downlink": "float16"},
]
EXACT = [(changes, kind) for changes in (*FLIPS, *MASKS) for kind in ("relay", "tally")]
EXACT += [({"method": "feedsign"}, "tally")]
EXACT += [(changes, "relay") for changes in (*ROBUST, *WEIGHTS)]
EXACT += [(changes, "tally") for changes in (ROBUST[0], WEIGHTS[-1])]  # who have none send the payloads


def name_of(given) -> str:
    return given if isinstance(given, str) else ", ".join(map(str, given.values()))


@dataclasses.dataclass(frozen=True)
class Played:
    """A round of made-up updates, of which some are lost and some damaged on the way."""

    before: object
    after: object
    votes: object  # as they were merged
    sent: object  # as they arrived
    news: bytes | None
    asked: object
    voters: object


def build(problem, **changes):
    faulty = {"faults__dropout": 0.2, "attack__kind": "corrupt", "attack__share": 0.25}
    settings = {"clients": CLIENTS, "rounds": 6, "participation": 0.5} | faulty
    config, task = tiny_config(**settings | changes), problem.task
    if config.method != "deltamask":  # whole masks and weights are long
        index = FlatIndex.create(task.params, ".*encoderblock_5/MlpBlock.*/kernel")
        task = dataclasses.replace(task, index=index)
    return dataclasses.replace(problem, config=config, task=task), methods.build(config, task)


def rounds_of(problem, method, rounds=5, kind="smaller"):
    """Plays rounds without training: every draw of a client's update is its own."""
    config, state = problem.config, method.init()
    received = method.start(state, cohort_of([0]))
    one = jax.tree.map(lambda x: x[0], method.private(state, cohort_of([0])))
    carry = jax.eval_shape(method.client.init, method.frozen, received, one)
    shapes = jax.eval_shape(method.client.final, method.frozen, received, carry, one)
    for number in range(1, rounds + 1):
        clients = partition.cohort(CLIENTS, config.participation, config.seed, number)
        asked = cohort_of(clients, number, examples=clients + number)
        plan = batches.Schedule(np.zeros((len(clients), 1, 1), np.int32), np.ones(len(clients), np.int32), 1)
        senders = asked.of(np.setdiff1d(np.arange(len(clients)), list(faults.draw(config, plan, asked)[1])))
        updates = [drawn(shapes, np.random.default_rng([number, int(k)])) for k in senders.clients]
        payloads = method.up.encode(state, updates, senders)
        before, state = state, method.remember(state, updates, payloads, senders)
        _, payloads = attacks.strike(problem, method, state, updates, payloads, senders)
        sent, rejected = method.up.decode(state, payloads, senders)
        rows = np.delete(np.arange(len(senders)), list(rejected))
        voters, votes = senders.of(rows), sent
        if method.release:
            state, votes = method.release(state, votes, voters)
        accepted = [payloads[row] for row in rows]
        news = downlink.news_of(method, state, votes, accepted, voters, kind)
        after = method.merge(state, votes, voters)
        yield Played(before, after, votes, sent, news, asked, voters)
        state = after


def public(state):
    """What clients can know of a server's state."""
    return state.theta if hasattr(state, "theta") else getattr(state, "weights", state)


def assert_same(told, state):
    jax.tree.map(np.testing.assert_array_equal, public(told), public(state))


def follow(method, told, played):
    """The news name who is in them; the client knows seed and round, and how many clients there are."""
    return downlink.follow(method, told, played.news, cohort_of(np.arange(CLIENTS), played.asked.round))


def snapshot(method, played):
    return method.down.decode(method.down.encode(played.before, played.asked), played.asked)


@pytest.mark.parametrize("changes, kind", EXACT, ids=name_of)
def test_followers_hold_the_servers_state(problem, changes, kind):
    """One who follows from the start, and two who begin with a snapshot in the middle."""
    problem, method = build(problem, **changes)
    assert method.exact
    told, kinds, lost = [method.init()], set(), 0
    for number, played in enumerate(rounds_of(problem, method, kind=kind)):
        if number in (1, 3):
            told.append(snapshot(method, played))
        for its in told:
            assert_same(its, played.before)
        kinds.add(bundle.unpack(played.news, server(played)).kind)
        told = [follow(method, its, played) for its in told]
        for its in told:
            assert_same(its, played.after)
        lost += len(played.asked) - len(played.voters)
    assert lost > 5 or method.name == "linear_probe"
    assert kinds == {bundle.TALLY if kind == "tally" and method.tally else bundle.RELAY}


def server(played) -> Context:
    """What the receiver of the news knows of them."""
    return Context(envelope.unpack(played.news).d, round=played.asked.round, client=SERVER)


@pytest.mark.parametrize("changes", ROUNDED, ids=name_of)
def test_methods_whose_snapshot_is_rounded_or_lacks_the_optimiser_have_no_news(problem, changes):
    problem, method = build(problem, **changes)
    assert not method.exact
    memory = Memory.at_start(CLIENTS)
    for number, played in enumerate(rounds_of(problem, method, rounds=2), 1):
        assert played.news is None
        memory = memory.after(played.asked, [], NOTHING)
        asked = cohort_of(np.arange(CLIENTS), number + 1)
        told = downlink.tell(method, played.after, asked, memory)
        assert told.snapshots == CLIENTS
        assert (told.bytes == len(method.down.encode(played.after, asked))).all()


def test_news_that_weigh_too_much_are_not_sent(problem):
    """Float32 weights of three clients or more: a snapshot is smaller anyway."""
    _, method = build(problem, method="linear_probe")
    state, everyone = method.init(), cohort_of(np.arange(6), examples=np.ones(6, int))
    n = sum(leaf.size for leaf in jax.tree.leaves(state.weights))
    updates = list(np.random.default_rng(0).normal(size=(6, n)).astype(np.float32) * 1e3)
    payloads = method.up.encode(state, updates, everyone)
    news = partial(downlink.news_of, method, state, updates, cohort=everyone, kind="smaller")
    assert sum(map(len, payloads)) >= downlink.HEAVY * n
    assert news(payloads=payloads) is None


def test_the_smaller_of_both_news_is_sent(problem):
    sizes = {}
    for kind in ("relay", "tally", "smaller"):
        its, method = build(problem, codec__name="side_info", mask__uniforms="per_client")
        sizes[kind] = [len(played.news) for played in rounds_of(its, method, 3, kind)]
    assert sizes["smaller"] == list(map(min, sizes["relay"], sizes["tally"]))


def test_a_tally_that_does_not_tell_the_votes_ends_the_run(problem, monkeypatch):
    its, method = build(problem)

    def decode(*inputs):
        votes = method.tally.decode(*inputs)
        return dataclasses.replace(votes, change=votes.change + 1)

    lying = dataclasses.replace(method.tally, decode=decode)
    with pytest.raises(RuntimeError, match="round 1: the tally does not tell the votes"):
        next(rounds_of(its, dataclasses.replace(method, tally=lying), kind="tally"))


# ---- who pays for what ----


def test_a_client_pays_for_the_news_it_lacks(problem):
    """After five rounds of others that is all five; after no answer only a snapshot helps."""
    memory = Memory.at_start(4)
    assert memory.lacking(cohort_of([0, 1, 2, 3])).tolist() == [0] * 4  # all make round 0's state themselves
    news = [100, 90, 80, 70, 60]
    for number, size in enumerate(news, 1):
        memory = memory.after(cohort_of([0, 1], number), [1] if number == 3 else [], size)
    lacks = memory.lacking(cohort_of([0, 1, 2, 3], 6))
    assert lacks.tolist() == [60, 60, sum(news), sum(news)]  # client 1 answered again in rounds 4 and 5
    silent = memory.after(cohort_of([0, 3], 6), [1], 50)
    assert silent.lacking(cohort_of([0, 3], 7)).tolist() == [50, np.inf]
    untold = memory.after(cohort_of([0], 6), [], NOTHING)  # only a snapshot tells round 6
    assert np.isinf(untold.lacking(cohort_of([0, 2], 7))).all()
    after = untold.after(cohort_of([0], 7), [], 40)  # it was sent one
    assert after.lacking(cohort_of([0, 2], 8)).tolist() == [40, np.inf]


def test_a_repeated_attempt_costs_nothing_twice():
    memory = Memory.at_start(3).after(cohort_of([0, 1], 1), [], 100)
    first = cohort_of([0, 2], 2)
    assert memory.lacking(first).tolist() == [100, 100]
    failed = memory.after(first, [1], None)  # too few answered: nothing was merged, client 2 was silent
    assert failed.news == (100,)
    assert failed.lacking(cohort_of([0, 1, 2], 2)).tolist() == [0, 100, np.inf]


def test_who_lacks_nothing_still_holds_what_a_snapshot_rounded(problem):
    """A round that is repeated: its first attempt told everybody the rounded state."""
    _, method = build(problem, method="fedavg", fedavg__downlink="float16", clients=2)
    first, second = (cohort_of(np.arange(2), number) for number in (1, 2))
    state = jax.tree.map(lambda x: x + np.float32(0.1), method.init())
    unknown = Memory(np.array([NOTHING, NOTHING]), (NOTHING,))
    told = downlink.tell(method, state, second, unknown)
    again = downlink.tell(method, state, second, unknown.after(second, [], None))
    assert again.snapshots == again.bytes.sum() == 0 < told.bytes.sum()
    assert_same(told.state, again.state)
    start = downlink.tell(method, state, first, Memory.at_start(2))
    assert start.state is state  # before the first round nobody is told anything
    silent = Memory.at_start(2).after(first, [1], None)
    start = downlink.tell(method, state, first, silent)  # its second attempt: they start alike
    assert start.state is state and not start.bytes.any()


def test_the_snapshot_is_sent_where_it_is_smaller(problem):
    _, method = build(problem)
    state, asked = method.init(), cohort_of([0, 1, 2, 3], 3)
    size = len(method.down.encode(state, asked))
    memory = Memory(np.array([2, 1, 0, NOTHING]), (size - 5, 5))
    told = downlink.tell(method, state, asked, memory)
    assert told.bytes.tolist() == [0, 5, size, size] and told.snapshots == 1
    memory = Memory(np.array([2, 1, 0, NOTHING]), (size - 4, 5))
    told = downlink.tell(method, state, asked, memory)
    assert told.bytes.tolist() == [0, 5, size, size] and told.snapshots == 2
    told = downlink.tell(method, state, asked, None)
    assert told.bytes.tolist() == [size] * 4 and told.snapshots == 4
    assert_same(told.state, state)


@pytest.mark.parametrize("name", ["deltamask", "linear_probe"])
def test_rounds_count_what_is_told_and_clients_follow_them(problem, monkeypatch, name):
    """Whole rounds, some of them repeated: bytes are those of `tell`, and one client follows every news."""
    settings = {"method": name, "clients": 6, "participation": 0.5, "faults__dropout": 0.3}
    config = tiny_config(**settings, min_clients=3, max_repeats=50, rounds=4)
    problem = dataclasses.replace(problem, config=config)
    method = methods.build(config, problem.task)
    tell, news_of, told, news = downlink.tell, downlink.news_of, [], []

    def telling(*inputs):
        told.append((inputs, tell(*inputs)))
        return told[-1][1]

    def news_told(*inputs):
        news.append(news_of(*inputs))
        return news[-1]

    monkeypatch.setattr(downlink, "tell", telling)
    monkeypatch.setattr(downlink, "news_of", news_told)
    memory, state, its, repeats = Memory.at_start(6), method.init(), method.init(), 0
    for number in range(1, 5):
        told.clear()
        state, result = play_until_enough(problem, method, state, number, memory)
        memory, repeats = result.memory, repeats + result.repeats
        assert result.downlink_bytes == sum(int(one.bytes.sum()) for _, one in told)
        each = [(*asked.clients, *one.bytes) for (_, _, asked, _), one in told]
        assert result.each["clients"] == [client for its in each for client in its[: len(its) // 2]]
        assert result.each["down"] == [size for its in each for size in its[len(its) // 2 :]]
        assert result.snapshots == sum(one.snapshots for _, one in told)
        if number == 1:
            assert result.downlink_bytes == 0 or result.repeats
        for (_, _, asked, before), one in told:
            lacks = before.lacking(asked)
            assert (one.bytes <= lacks).all() and ((one.bytes == 0) == (lacks == 0)).all()
        if news[-1] is None:
            assert result.news_bytes is None and memory.news[-1] == NOTHING
            its = state
            continue
        assert result.news_bytes == len(news[-1]) == memory.news[-1]
        its = downlink.follow(method, its, news[-1], cohort_of(np.arange(6), number))
        assert_same(its, state)
    assert len(memory.news) == 4 and repeats
    assert (memory.held[memory.held >= 0] <= 3).all()


def test_without_memory_everybody_is_sent_a_snapshot_every_round(problem):
    config = tiny_config(method="linear_probe")
    problem = dataclasses.replace(problem, config=config)
    method, state = methods.build(config, problem.task), None
    state = method.init()
    for number in (1, 2):
        asked = cohort_of(np.arange(6), number)
        size = len(method.down.encode(state, asked))
        state, result = play_round(problem, method, state, asked)
        assert (result.downlink_bytes, result.snapshots) == (6 * size, 6)
        assert result.memory is None and result.news_bytes is None


# ---- hostile bytes ----


def damaged(payload: bytes, rng):
    """The payload with one bit changed, cut off, and with changed insides whose checksum is made right."""
    changed = bytearray(payload)
    changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
    yield bytes(changed)
    yield payload[: rng.integers(len(payload))]
    inside = bytearray(payload)
    inside[rng.integers(12, len(inside))] ^= 1 << rng.integers(8)
    yield sealed(bytes(inside))
    start = min(len(inside) - 1, envelope.SIZE + int(rng.integers(80)))  # numbers of the bundle's head
    inside = bytearray(payload)
    inside[start] ^= 1 << rng.integers(8)
    yield sealed(bytes(inside))


HOSTILE = [
    {"mask__aggregator": "running", "mask__uniforms": "per_client"},
    {"mask__aggregator": "running", "robust__aggregator": "clip"},
    {"method": "fedmask"},
    {"method": "qsgd"},
]


@pytest.mark.parametrize("kind", ["relay", "tally"])
@pytest.mark.parametrize("changes", HOSTILE, ids=name_of)
def test_damaged_news_and_snapshots_raise_payload_errors_alone(problem, changes, kind):
    its, method = build(problem, codec__name="rice", **changes)
    *_, played = rounds_of(its, method, 2, kind)
    told, rng = snapshot(method, played), np.random.default_rng(0)
    refused = 0
    times = 5 if method.name == "qsgd" else 40  # its payloads are long
    for _ in range(times):
        for news in damaged(played.news, rng):
            try:
                follow(method, told, dataclasses.replace(played, news=news))
            except PayloadError:
                refused += 1
        for payload in damaged(method.down.encode(played.before, played.asked), rng):
            try:
                method.down.decode(payload, played.asked)
            except PayloadError:
                refused += 1
    assert refused > 0.5 * times * 8
    everyone, number = np.arange(CLIENTS), played.asked.round
    strangers, another = cohort_of(everyone[:1], number), cohort_of(everyone, number + 1)
    whole = bundle.unpack(played.news, server(played))
    nobody = bundle.pack(whole.parts, server(played), whole.kind)
    unseen = bundle.pack(whole.parts, server(played), bundle.RELAY, whole.clients)
    foreign = method.down.encode(played.before, played.asked)
    for news in (b"", played.news[:10], foreign, nobody, unseen):
        with pytest.raises(PayloadError):
            follow(method, told, dataclasses.replace(played, news=news))
    for asked in (strangers, another):
        with pytest.raises(PayloadError):
            downlink.follow(method, told, played.news, asked)


# ---- votes that the server holds back ----


@pytest.mark.parametrize(
    "codec, uniforms", [("side_info", "per_client"), ("bfuse", "per_client"), ("bfuse", "shared")]
)
def test_votes_held_back_are_told_later(problem, codec, uniforms):
    """None is lost but those that would move θ beyond its clip, which a merge would drop as well."""
    its, method = build(
        problem,
        codec__name=codec,
        mask__uniforms=uniforms,
        mask__aggregator="control_variate",
        downlink__hold=2,
    )
    low, high = (round(p * 65536) for p in (its.config.mask.theta_clip, 1 - its.config.mask.theta_clip))
    told, held = [method.init()], 0
    for played in rounds_of(its, method):
        told = [follow(method, one, played) for one in [*told, snapshot(method, played)]]
        theta, voters = played.before.theta.astype(int), len(played.asked)  # however few came
        up, down = (-(-room * voters // 65536) for room in (high - theta, theta - low))
        total = np.clip(held + played.sent.change, -down, up)
        np.testing.assert_array_equal(played.votes.change, np.where(np.abs(total) >= 2, total, 0))
        held = played.after.held
        np.testing.assert_array_equal(held, total - played.votes.change)
        for one in told:
            assert_same(one, played.after)
        news = bundle.unpack(played.news, server(played))
        assert news.kind == bundle.TALLY
        assert envelope.unpack(news.parts[0]).flags == (1 if uniforms == "shared" else 2)  # streams
    assert np.abs(held).sum() > 0 and np.abs(played.votes.change).sum() > 0


def test_a_round_of_one_voter_loses_no_held_vote(problem):
    settings = {"codec__name": "rice", "mask__uniforms": "per_client", "mask__aggregator": "control_variate"}
    _, method = build(problem, **settings, downlink__hold=5, participation=1.0, mask__theta_init=0.5)
    state = method.init()
    held = np.resize(np.int32([4, -4, 0, 3]), len(state.held))
    nothing = Votes(change=np.zeros(len(held), np.int32))
    after, told = method.release(dataclasses.replace(state, held=held), nothing, cohort_of([3]))
    np.testing.assert_array_equal(after.held, held)
    assert not told.change.any()


def test_news_of_accepted_payloads_are_not_judged_by_another_median(problem):
    """Who was rejected is not in the news, and without them the largest would flip too many."""
    settings = {"codec__name": "rice", "faults__dropout": 0.0, "participation": 1.0}
    problem, method = build(problem, **settings)
    state, d, sizes = method.init(), problem.task.index.d, [200, 200, 250, 1200, 9000, 9000, 9000]
    asked = cohort_of(np.arange(len(sizes)), examples=np.ones(len(sizes), int))
    payloads = method.up.encode(state, [np.packbits(np.arange(d) < size) for size in sizes], asked)
    votes, rejected = method.up.decode(state, payloads, asked)
    assert list(rejected) == [4, 5, 6]
    voters = asked.of(np.arange(4))
    news = downlink.news_of(method, state, votes, payloads[:4], voters, "relay")
    told = downlink.follow(method, state, news, cohort_of(np.arange(CLIENTS)))
    assert_same(told, method.merge(state, votes, voters))


def test_news_of_one_client_without_examples_are_refused(problem):
    _, method = build(problem, method="linear_probe")
    state, asked = method.init(), cohort_of([0, 1], examples=np.array([3, 2]))
    n = sum(leaf.size for leaf in jax.tree.leaves(state.weights))
    payloads = method.up.encode(state, list(np.ones((2, n), np.float32)), asked)
    context = Context(n, round=1, client=SERVER)
    seen, unseen = (
        bundle.pack(payloads, context, bundle.RELAY, asked.clients, counts) for counts in ([3, 2], [3, 0])
    )
    downlink.follow(method, state, seen, asked)
    with pytest.raises(PayloadError, match="seen no example"):
        downlink.follow(method, state, unseen, asked)
