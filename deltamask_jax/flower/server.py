"""The ServerApp: `experiment.run`, whose cohorts are asked over Flower's wire.

A round is bounded: it ends when everybody has answered, and at the latest after `deadline` seconds. Who has
not answered by then is lost, by reason, and the round is merged from the others.
"""

import dataclasses
import logging
import math
import time
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid, ServerApp

from deltamask_jax import devices, experiment, heads
from deltamask_jax.federation import attacks, downlink, faults
from deltamask_jax.federation.clients import Answers
from deltamask_jax.flower import records, run_config
from deltamask_jax.methods import Method
from deltamask_jax.progress import say
from deltamask_jax.task import HEAD_PHASE, MAIN_PHASE, Cohort, Problem

POLL = 1.0  # seconds between two looks for answers
GRACE = 60.0  # seconds that a message outlives its deadline: Flower fails whoever looks for one that is gone
MOST_EXAMPLES = 2**32 - 1  # of a client; they travel as u32 in news
NOBODY = -1
_WHY = {
    ErrorCode.NODE_UNAVAILABLE: faults.NO_ANSWER,
    ErrorCode.MESSAGE_UNAVAILABLE: faults.LATE,
    ErrorCode.REPLY_MESSAGE_UNAVAILABLE: faults.LATE,
}
_SAID = (faults.NO_EXAMPLES, faults.NO_ANSWER, faults.LATE, faults.NOT_FINITE)  # reasons a client may give

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Play the run that `[tool.flwr.app.config]` describes, or continue it."""
    config = run_config.config_of(context.run_config)
    if config.attack.kind in attacks.COLLUDE:
        raise ValueError(
            f"config.attack.kind={config.attack.kind!r}: clients that collude share their examples, which "
            "only simulated ones can"
        )
    devices.keep_compilations()
    deadline, patience = (float(context.run_config[name]) for name in ("deadline", "patience"))
    federation = Federation(grid, config, deadline, patience)
    experiment.run(config, str(context.run_config["workdir"]), federation.ask)


class Federation:
    """The clients behind a grid, and what this process knows of them. Flower's nodes come and go; a client is
    the number in a node's `partition-id`.

    Args:
        deadline: seconds from a round's messages to its last answer.
        patience: seconds to wait for all clients of the first round, and for enough of them in later ones.
    """

    def __init__(self, grid: Grid, config, deadline: float, patience: float):
        self._grid, self._config = grid, config
        self._deadline, self._patience = deadline, patience
        self._expected = run_config.fingerprint(config)
        self._client_of: dict[int, int] = {}  # node -> client, or NOBODY
        self._asked: dict[str, int] = {}  # message id -> node that has not said yet which client it is
        self._asked_at: dict[int, float] = {}  # node -> when it was asked last
        self._started = False
        self._transport = {"transport_uplink_bytes": 0, "transport_downlink_bytes": 0}
        self.node_of: dict[int, int] = {}  # client -> node
        self.told: set[int] = set()  # nodes that hold a head and a state of this run
        self.owed: set[int] = set()  # clients whose first copy of the head is in round 0's bytes
        self.news: dict[int, bytes | None] = {}  # of each round that this process has played
        self.counted: dict[int, list[int]] = {}  # client -> [round, attempt] of its last payload that counted

    def ask(
        self,
        problem: Problem,
        method: Method,
        state: Any,
        cohort: Cohort,
        memory: downlink.Memory | None = None,
    ) -> Answers:
        """Send a cohort what it lacks and wait, so long as the deadline allows, for what it answers.

        Args:
            state: the server's.
            memory: what clients hold as far as the ledger knows; None: they keep nothing.
        """
        began = time.monotonic()
        enough = self._config.min_clients if cohort.phase == MAIN_PHASE else 1
        self._wait_for(cohort, min(enough, len(cohort)) if self._started else len(cohort))
        self._started = True
        if cohort.phase == HEAD_PHASE:
            self.owed = set(range(self._config.clients))
        telling = _Telling(self, problem, method, state, cohort, memory)
        payloads, losses = [b""] * len(cohort), np.full(len(cohort), np.nan, np.float32)
        examples = np.zeros(len(cohort), np.int64)
        rows = [row for row, client in enumerate(cohort.clients) if int(client) in self.node_of]
        lost = {row: faults.NO_ANSWER for row in range(len(cohort)) if row not in rows}
        until = time.monotonic() + self._deadline
        waiting, again = self._send({row: telling.message(row, self._deadline) for row in rows}), set()
        while waiting:
            for row, reply in self._receive(waiting):
                answer = _read(reply)
                if "lacks" in answer and row not in again:
                    again.add(row)
                    self.told.discard(self.node_of[int(cohort.clients[row])])
                    waiting |= self._send({row: telling.message(row, until - time.monotonic())})
                elif "payload" in answer:
                    payloads[row], losses[row] = answer["payload"], answer["loss"]
                    examples[row] = answer["examples"]
                else:
                    lost[row] = answer.get("lost", faults.FAILED)
                    if "why" in answer:
                        client = cohort.clients[row]
                        logging.warning("round %d: client %d: %s", cohort.round, client, answer["why"])
            if not waiting or time.monotonic() >= until:
                break
            time.sleep(POLL)
        online = set(self._grid.get_node_ids())
        for row in waiting.values():
            there = self.node_of[int(cohort.clients[row])] in online
            lost[row] = faults.LATE if there else faults.NO_ANSWER
        cohort = dataclasses.replace(cohort, examples=examples)
        answers = Answers(state, cohort, payloads, losses, lost)

        def conclude(news: bytes | None) -> None:
            self._transport = dict.fromkeys(self._transport, 0)
            if cohort.phase == MAIN_PHASE:
                self.news[cohort.round] = news
                for client in cohort.clients[answers.senders]:
                    self.counted[int(client)] = [cohort.round, cohort.attempt]

        return dataclasses.replace(
            answers,
            told_bytes=telling.bytes,
            snapshots=telling.snapshots,
            seconds={"train_seconds": time.monotonic() - began},
            details=dict(self._transport),
            conclude=conclude,
        )

    def _wait_for(self, cohort: Cohort, enough: int) -> None:
        """Meet every node that has come, until enough of the cohort are there or patience ends.

        Nodes that were not there before are waited for; those that were asked in an earlier round and have
        not answered are not.
        """
        until, before = time.monotonic() + self._patience, set(self._asked_at)
        failed: set[int] = set()
        while True:
            self._meet(failed)
            there = sum(int(client) in self.node_of for client in cohort.clients)
            coming = there < len(cohort) and set(self._asked.values()) - before
            if (there >= enough and not coming) or time.monotonic() >= until:
                break
            time.sleep(POLL)
        say(f"round {cohort.round}: {there} of {len(cohort)} clients are there")

    def _meet(self, failed: set[int]) -> None:
        """Ask nodes that are new which client they are, and take the answers that have come.

        Of two that say the same, the last to come counts: a node that was restarted has another number, and
        its old one counts as online for a while.

        Args:
            failed: nodes that are not asked any more this round; who fails is added to them.
        """
        online, now = list(self._grid.get_node_ids()), time.monotonic()
        self._client_of = {node: client for node, client in self._client_of.items() if node in online}
        self._asked_at = {node: at for node, at in self._asked_at.items() if node in online}
        self._asked = {
            sent: node
            for sent, node in self._asked.items()
            if now < self._asked_at.get(node, -np.inf) + self._patience + GRACE / 2
        }
        known = {*self._client_of, *self._asked.values(), *failed}
        new = [node for node in online if node not in known]
        self._asked_at |= dict.fromkeys(new, now)
        ttl = self._patience + GRACE
        self._asked |= self._send({node: Message(RecordDict(), node, "query.who", ttl=ttl) for node in new})
        for node, reply in self._receive(self._asked):
            if reply.has_error():
                failed.add(node)
                logging.warning("node %d does not say who it is: %s", node, reply.error.reason)
                continue
            about = dict(reply.content.config_records.get("who", {}))
            if about.get("config") == self._expected and about.get("client") in range(self._config.clients):
                self._client_of[node] = int(about["client"])
                continue
            self._client_of[node] = NOBODY
            logging.warning("node %d is asked for nothing: it says %s, not %s", node, about, self._expected)
        self.node_of = {client: node for node, client in self._client_of.items() if client != NOBODY}

    def _send(self, messages: dict[int, Message]) -> dict[str, int]:
        """Push messages, given by whose they are: message id -> whose."""
        if not messages:
            return {}
        self._transport["transport_downlink_bytes"] += sum(map(records.weight, messages.values()))
        ids = self._grid.push_messages(list(messages.values()))
        return {sent: whose for sent, whose in zip(ids, messages, strict=True) if sent}

    def _receive(self, waiting: dict[str, int]) -> Iterator[tuple[int, Message]]:
        """The answers that have come, and whose each is, who is waited for no more."""
        for reply in self._grid.pull_messages(list(waiting)):
            whose = waiting.pop(reply.metadata.reply_to_message_id, None)
            if whose is not None:
                self._transport["transport_uplink_bytes"] += records.weight(reply)
                yield whose, reply


class _Telling:
    """What each of a cohort is told in a round, and what that costs.

    Attributes:
        bytes: of the payloads told so far, to each of the cohort; the first copy of the head is among
            round 0's.
        snapshots: how many of them were snapshots.
    """

    def __init__(
        self,
        federation: Federation,
        problem: Problem,
        method: Method,
        state: Any,
        cohort: Cohort,
        memory: downlink.Memory | None,
    ):
        self._federation, self._problem, self._method = federation, problem, method
        self._state, self._cohort, self._memory = state, cohort, memory
        self.bytes, self.snapshots = np.zeros(len(cohort), np.int64), 0

    def message(self, row: int, deadline: float) -> Message:
        """What the client of a row is sent; its node is taken to hold it from then on.

        Args:
            deadline: seconds within which an answer counts.
        """
        federation, cohort, client = self._federation, self._cohort, int(self._cohort.clients[row])
        node, main = federation.node_of[client], cohort.phase == MAIN_PHASE
        fresh = main and node not in federation.told
        held = 0 if fresh or self._memory is None else int(self._memory.held[client])
        down = self._news_after(held)
        if down is None or sum(map(len, down.values())) > len(self._snapshot):
            down = {"snapshot": self._snapshot}
            self.snapshots += 1
        self.bytes[row] += sum(map(len, down.values()))
        if fresh and self._problem.config.head.init != "he":
            down["head"] = self._head
            self.bytes[row] += 0 if client in federation.owed else len(self._head)
            federation.owed.discard(client)
        if main:
            federation.told.add(node)
        asked = {
            "phase": cohort.phase,
            "round": cohort.round,
            "attempt": cohort.attempt,
            "held": held,
            "counted": federation.counted.get(client, [0, 0]),
        }
        content = RecordDict({"round": ConfigRecord(asked)})
        if fresh or not main:
            content["classes"] = ConfigRecord({"names": list(self._problem.class_names)})
        if down:
            content["down"] = records.pack(down)
        return Message(content, node, "train", ttl=deadline + GRACE, group_id=str(cohort.round))

    def _news_after(self, held: int) -> dict[str, bytes] | None:
        """Payloads from the round that a client holds to this one; None where only a snapshot helps."""
        if self._memory is None or held < 0:
            return None
        news = {f"news-{n:06}": self._federation.news.get(n) for n in range(held + 1, self._cohort.round)}
        told = {name: payload for name, payload in news.items() if payload is not None}
        return told if len(told) == len(news) else None

    @cached_property
    def _snapshot(self) -> bytes:
        return self._method.down.encode(self._state, self._cohort)

    @cached_property
    def _head(self) -> bytes:
        return heads.pack(self._problem.task.head, self._problem.config)


def _read(reply: Message) -> dict[str, Any]:
    """What a client answered, and no more of what it said: `payload`, `loss` and `examples`; or `lost`, with
    `why` if that is news; or `lacks`."""
    if reply.has_error():
        why = (str(reply.error.reason).strip().splitlines() or ["no reason given"])[0]
        return {"lost": _WHY.get(reply.error.code, faults.FAILED), "why": why}
    answer = dict(reply.content.config_records.get("answer", {}))
    if "lost" in answer:
        known = answer["lost"] in _SAID
        return (
            {"lost": answer["lost"]} if known else {"lost": faults.FAILED, "why": "it says no known reason"}
        )
    if "lacks" in answer:
        return {"lacks": True}
    payload, loss, examples = (answer.get(name) for name in ("payload", "loss", "examples"))
    if (
        isinstance(payload, bytes)
        and isinstance(loss, float)
        and math.isfinite(loss)
        and isinstance(examples, int)
        and 0 < examples <= MOST_EXAMPLES
    ):
        return {"payload": payload, "loss": loss, "examples": examples}
    return {"lost": faults.FAILED, "why": "its answer is none of this protocol"}
