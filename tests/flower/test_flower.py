"""A federation on Flower is the simulation: the same states, bytes and ledger, whatever clients meet with."""

import dataclasses
import json
import math
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest

from deltamask_jax import experiment, heads, methods, setup
from deltamask_jax.federation import engine, faults
from deltamask_jax.workdir.checkpoint import named_arrays
from tests.conftest import cohort_of, tiny_config

ROOT = Path(__file__).parents[2]


def test_without_flower_a_line_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("flwr", "deltamask_jax.flower"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flwr", None)
    with pytest.raises(
        ImportError, match=r'^deltamask_jax.flower needs Flower: pip install "deltamask_jax\[flower\]"$'
    ):
        import deltamask_jax.flower  # noqa: F401


pytest.importorskip("flwr", reason="needs the flower extra")

from deltamask_jax.flower import client, records, run_config, server  # noqa: E402
from tests.flower.grid import RUN, Nodes  # noqa: E402

FREE = (
    "seconds",
    "flip",
    "false",
    "error",
    "agreement",
    "mask_rate",
    "mask_entropy",
    "kl_bpp",
    "tuned",
    "transport",
)  # what only updates or clocks tell


@pytest.fixture
def play(problem, monkeypatch, tmp_path):
    """Plays a tiny run, simulated or on a grid: (state after each round, ledger). It compiles once."""
    built = {}

    def build(config, task):
        key = config.method, np.asarray(task.head["kernel"]).tobytes()
        return built.setdefault(key, real_build(config, task))

    def round_of_head(its):
        changed, method = real_head(its)
        return changed, built.setdefault(its.config.head.init, method)

    real_build, real_head = methods.build, heads.round_of_head
    monkeypatch.setattr(methods, "build", build)
    monkeypatch.setattr(heads, "round_of_head", round_of_head)
    monkeypatch.setattr(server, "POLL", 0)
    states, engines = [], {}

    def set_up(config, *_):
        run = engines.setdefault("only", engine.from_config(config))
        return dataclasses.replace(problem, config=config, engine=run)

    for module, name in ((experiment, "set_up"), (experiment, "set_up_server"), (setup, "set_up_client")):
        monkeypatch.setattr(module, name, set_up)
    monkeypatch.setattr(setup, "with_features", lambda its: its)
    monkeypatch.setattr(experiment, "linear_probe_accuracy", lambda its: 0.5)
    correctness = experiment.correctness

    def watched(*arguments):
        correct = correctness(*arguments)

        def watch(state):
            states.append(named_arrays({"state": state}))
            return correct(state)

        return watch

    monkeypatch.setattr(experiment, "correctness", watched)

    def play(name, ask=None, **changes):
        config = tiny_config(**(dict(rounds=3, cohort__chunk=1) | changes))
        monkeypatch.setattr(run_config, "config_of", lambda run: config.copy_and_resolve_references())
        states.clear()
        workdir = tmp_path / name
        if isinstance(ask, Nodes):
            server.app(ask, ask.contexts[min(ask.contexts)])
        else:
            experiment.run(config, workdir)
        lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
        return list(states), lines

    return play


@pytest.fixture
def nodes(tmp_path):
    return lambda: Nodes(6, RUN | {"workdir": str(tmp_path / "flower")})


def assert_same(simulated, real, but=()):
    for ours, theirs in zip(simulated[0], real[0], strict=True):
        for name in ours.keys() & theirs.keys():
            if "residuals" not in name:  # those of real clients never leave them
                np.testing.assert_array_equal(theirs[name], ours[name], err_msg=name)
    for ours, theirs in zip(simulated[1], real[1], strict=True):
        for name in ours:
            if not any(part in name for part in (*FREE, *but)):
                assert theirs[name] == ours[name], (ours["round"], name)


@pytest.mark.parametrize(
    "changes",
    [
        dict(participation=0.5, mask__aggregator="running", mask__uniforms="per_client"),
        dict(method="signsgd", participation=0.5),  # what a client could not send, it keeps for the next time
        dict(method="fedavg", fedavg__downlink="float16", head__init="fit"),  # a snapshot each time
        dict(method="peft", peft__kind="lora", peft__wire="8bit", head__init="he"),
    ],
    ids=lambda changes: changes.get("method", "deltamask"),
)
def test_every_state_and_line_of_the_ledger_is_the_simulations(play, nodes, changes):
    assert_same(play("simulated", **changes), play("flower", nodes(), **changes))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(methods.METHODS.keys() - {"deltamask", "signsgd", "fedavg", "peft"}))
def test_every_other_method_too(play, nodes, name):
    changes = dict(method=name) | (dict(rounds=1, head__init="he") if name == "fedcof" else {})
    assert_same(play("simulated", **changes), play("flower", nodes(), **changes))


def test_faults_and_malformed_payloads_have_the_same_reasons(play, nodes):
    changes = dict(
        faults__dropout=0.3,
        faults__straggler=0.3,
        faults__deadline=6.0,
        attack__kind="corrupt",
        attack__share=0.34,
        min_clients=2,
        seed=2,
        max_repeats=9,
        head__init="fedcof",
    )
    simulated = play("simulated", **changes)
    seen = {reason for line in simulated[1] for reason in (*line["lost"], *line["rejected"])}
    assert {"no answer", "checksum"} <= seen, seen
    assert_same(simulated, play("flower", nodes(), **changes))


def test_a_client_that_has_lost_its_state_is_sent_a_snapshot_and_the_round_goes_on(play, nodes):
    simulated, grid = play("simulated"), nodes()
    answered = grid.push_messages

    def forgetting(messages):
        if messages[0].metadata.group_id == "3" and len(messages) == 6:
            grid.contexts[101].state.clear()  # restarted, and still the same node
            del grid.contexts[102]
        return answered(messages)

    def restarted(there=grid.get_node_ids):
        if any(message.metadata.group_id == "2" for _, message in grid.sent) and 202 not in grid.contexts:
            grid.start(202, 2)  # the old node counts as online for a while
        return there()

    grid.push_messages, grid.get_node_ids = forgetting, restarted
    real = play("flower", grid)
    assert_same(simulated, real, but=("downlink", "total", "snapshots"))
    again = [node for node, message in grid.sent if message.metadata.group_id == "3"]
    assert again == [100, 101, 202, 103, 104, 105, 101]
    assert real[1][3]["lost"] == {} and real[1][3]["downlink_bytes"] > simulated[1][3]["downlink_bytes"]


def test_who_is_late_gone_broken_or_absent_is_lost_by_reason_and_the_rest_is_merged(play, nodes, monkeypatch):
    grid = nodes()
    grid.run["deadline"] = 0.0
    del grid.contexts[105]  # never came
    sent = grid.push_messages

    def push(messages):
        if messages[0].metadata.group_id == "2":
            grid.silent, grid.broken = {101, 102}, {103}
        ids = sent(messages)
        if messages[0].metadata.group_id == "2":
            del grid.contexts[102]
        return ids

    grid.push_messages = push
    real = play("flower", grid, head__init="he")
    assert real[1][1]["lost"] == {"no answer": 1} and real[1][1]["merged"] == 5
    assert real[1][2]["lost"] == {"no answer": 2, "late": 1, "failed": 1} and real[1][2]["merged"] == 2
    lost = {1: {5: "no answer"}, 2: {1: "late", 2: "no answer", 3: "failed", 5: "no answer"}}
    lost[3] = {1: "late", 2: "no answer", 3: "failed", 5: "no answer"}

    def draw(config, plan, cohort):
        gone = lost[cohort.round]
        return dataclasses.replace(plan, steps=np.where(np.isin(range(6), list(gone)), 0, plan.steps)), gone

    monkeypatch.setattr(faults, "draw", draw)
    assert_same(play("simulated", head__init="he"), real, but=("downlink", "total", "snapshots"))


@pytest.mark.parametrize(
    "answer, read",
    [
        ({"lost": "late", "payload": b"x", "loss": 1.0, "examples": -5}, {"lost": "late"}),
        ({"lacks": True, "payload": b"x", "loss": 1.0, "examples": -5}, {"lacks": True}),
        ({"payload": b"x", "loss": 1.0, "examples": 5, "lost": "struck by lightning"}, None),
        ({"payload": b"x", "loss": math.nan, "examples": 5}, None),
        ({"payload": b"x", "loss": 1.0, "examples": 0}, None),
        (
            {"payload": b"x", "loss": 1.0, "examples": 5, "more": 1},
            {"payload": b"x", "loss": 1.0, "examples": 5},
        ),
    ],
)
def test_of_an_answer_nothing_is_taken_but_what_the_protocol_has(answer, read):
    from flwr.app import ConfigRecord, Message, RecordDict

    asked = Message(RecordDict(), 1, "train")
    asked.metadata.__dict__["_message_id"] = "1"
    found = server._read(Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=asked))
    expected = {"lost": "failed", "why": found.get("why")} if read is None else read
    assert found == expected


def test_a_server_that_was_stopped_continues(play, nodes):
    simulated, grid = play("simulated"), nodes()

    def stopped(messages, sent=grid.push_messages):
        if messages[0].metadata.group_id == "2":
            raise KeyboardInterrupt
        return sent(messages)

    grid.push_messages = stopped
    with pytest.raises(KeyboardInterrupt):
        play("flower", grid)
    real = play("flower", nodes())
    assert len(real[1]) == 4 and len(real[0]) == 2
    assert_same((simulated[0][2:], simulated[1]), real, but=("downlink", "total", "snapshots"))


def test_a_node_of_another_config_or_without_a_number_is_asked_for_nothing(play, nodes, monkeypatch, caplog):
    grid = nodes()
    grid.contexts[103].node_config["partition-id"] = 2
    who = client.app._registered_funcs["query.who"]

    def another(message, context):
        reply = who(message, context)
        if context.node_id == 104:
            reply.content["who"]["config"] = "0.0.1 12345678"
        return reply

    monkeypatch.setitem(client.app._registered_funcs, "query.who", another)
    _, lines = play("flower", grid, rounds=1, head__init="he")
    assert lines[1]["lost"] == {"no answer": 2}  # client 4, and client 3 whose node says it is 2
    assert "0.0.1 12345678" in caplog.text
    asked = [node for node, message in grid.sent if message.metadata.message_type == "train"]
    assert asked == [100, 101, 103, 105]  # of two that are client 2, the last that came


@pytest.fixture
def federation(nodes, monkeypatch):
    """A federation of six nodes and 20 seconds of patience, its grid, and the seconds that it waited."""
    config, clock = tiny_config(), [0.0]
    monkeypatch.setattr(run_config, "config_of", lambda run: config)
    monkeypatch.setattr(server.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(server.time, "sleep", lambda seconds: clock.__setitem__(0, clock[0] + seconds))
    grid = nodes()
    return server.Federation(grid, config, deadline=60.0, patience=20.0), grid, clock


def test_a_node_that_never_says_who_it_is_is_waited_for_once(federation):
    its, grid, clock = federation
    grid.silent = {104}
    its._wait_for(cohort_of(range(6)), 6)
    assert sorted(its.node_of) == [0, 1, 2, 3, 5] and clock[0] == 20
    for number in range(2, 40):
        clock[0] += 10  # a round; the question of the first goes stale meanwhile
        its._wait_for(cohort_of(range(6), number), 1)
    assert clock[0] == 20 + 38 * 10
    assert 2 < sum(node == 104 for node, _ in grid.sent) <= 9  # it is asked again, now and then
    grid.start(106, 4)
    its._wait_for(cohort_of(range(6), 40), 1)
    assert its.node_of[4] == 106


def test_a_node_that_failed_to_say_who_it_is_is_asked_again_in_the_next_round(federation, caplog):
    its, grid, clock = federation
    grid.broken = {103}
    its._wait_for(cohort_of(range(6)), 5)
    assert 3 not in its.node_of and clock[0] == 0 and "node 103 does not say who it is" in caplog.text
    its._wait_for(cohort_of(range(6), 2), 6)
    assert clock[0] == 20 and sum(node == 103 for node, _ in grid.sent) == 2  # once per round
    grid.broken = set()
    its._wait_for(cohort_of(range(6), 3), 1)
    assert its.node_of[3] == 103


def test_a_node_learns_the_servers_classes_and_sets_its_own_data_up_by_them(play, nodes, monkeypatch):
    grid, names, received = nodes(), ("ant", "bee", "cat"), []
    set_up = setup.set_up_client

    def watched(config, client, data_of_its_own, class_names):
        received.append((client, data_of_its_own, tuple(class_names)))
        return set_up(config, client)

    def of_server(*arguments):
        return dataclasses.replace(set_up(*arguments), class_names=names)

    monkeypatch.setattr(setup, "set_up_client", watched)
    monkeypatch.setattr(experiment, "set_up_server", of_server)
    grid.contexts[104].node_config["data"] = "npz:mine.npz"
    play("flower", grid, rounds=1, head__init="he")
    for context in grid.contexts.values():
        assert tuple(context.state.config_records["classes"]["names"]) == names
    assert received == [(k, "npz:mine.npz" if k == 4 else "", names) for k in range(6)]


@pytest.mark.parametrize("name", ["../evil.py", "/tmp/evil.py", "configs/quickstart.py", "a.b"])
def test_nobody_far_away_chooses_which_file_is_run(name):
    with pytest.raises(ValueError, match="must name a file in configs/ without its folder"):
        run_config.config_of(RUN | {"config": name})


def test_the_run_config_changes_settings_by_their_names():
    config = run_config.config_of(RUN | {"changes": "rounds=3,mask.kappa=1,per_client_evaluation"})
    assert (config.rounds, config.mask.kappa, config.per_client_evaluation) == (3, 1.0, True)
    with pytest.raises(ValueError, match="unknown option 'mask.kapa'"):
        run_config.config_of(RUN | {"changes": "mask.kapa=1"})
    assert run_config.fingerprint(config) != run_config.fingerprint(run_config.config_of(RUN))


def test_records_hold_payloads_and_nothing_else():
    from flwr.app import Array, ArrayRecord, Message, RecordDict

    payloads = {"snapshot": b"\x00\x01", "head": bytes(300)}
    content = RecordDict({"down": records.pack(payloads)})
    assert records.unpack(content, "down") == payloads and records.unpack(content, "up") == {}
    content["down"] = ArrayRecord({"x": Array(np.zeros(3))})
    with pytest.raises(ValueError, match="numpy.ndarray"):
        records.unpack(content, "down")
    Nodes(0, {})  # says which run this process is of
    small, large = (
        records.weight(Message(RecordDict({"d": records.pack({"p": bytes(n)})}), 1, "train"))
        for n in (100, 5100)
    )
    assert 5000 <= large - small < 5010 and small < 1000


def test_the_bundle_names_what_the_server_reads():
    app = tomllib.loads((ROOT / "flower-app" / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert app["config"].keys() == RUN.keys()
    run_config.config_of(app["config"])
