"""The ClientApp: a cohort of one.

A round's message says what the client lacks of the server's state. The client makes that state, trains on its
own examples, and answers with one payload. Between rounds it keeps the state in `context.state`, which ends
with its SuperNode: whoever has lost it says so, and is sent a snapshot.
"""

import os
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from deltamask_jax.flower import records, run_config

app = ClientApp()


@app.query("who")
def who(message: Message, context: Context) -> Message:
    """Which client this node is, and of what config."""
    config = run_config.config_of(context.run_config)
    about = {"client": _number(context, config), "config": run_config.fingerprint(config)}
    return Message(RecordDict({"who": ConfigRecord(about)}), reply_to=message)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round of this client.

    The message: `round` with phase, round, attempt, the round whose state the server thinks is held here, and
    the last (round, attempt) whose payload it counted; `down` with payloads: the fitted head, the news by
    round, a snapshot; `classes`, how the server's are numbered, for whoever may not know.

    Raises:
        ValueError: a message that the server does not write.
    """
    asked = dict(message.content.config_records["round"])
    if "classes" in message.content:
        context.state["classes"] = message.content.config_records["classes"]
    answer = _train(asked, records.unpack(message.content, "down"), context)
    return Message(RecordDict({"answer": ConfigRecord(answer)}), reply_to=message)


def _train(asked: dict[str, Any], down: dict[str, bytes], context: Context) -> dict[str, Any]:
    """A payload, its loss and its number of examples; or why there is none: `lost`, or `lacks` a snapshot."""
    from deltamask_jax import (
        devices,
        heads,
        methods,
    )  # jax, which a node that is only asked its name can spare
    from deltamask_jax.federation import clients, downlink
    from deltamask_jax.setup import set_up_client, with_features
    from deltamask_jax.task import HEAD_PHASE, MAIN_PHASE, Cohort
    from deltamask_jax.workdir import environment
    from deltamask_jax.workdir.checkpoint import named_arrays, restore_state

    config, its_own = run_config.config_of(context.run_config), str(context.node_config.get("data", ""))
    if its_own and "classes" not in context.state:
        return {"lacks": True}
    main, held, mine = asked["phase"] == MAIN_PHASE, asked["held"], context.state
    if main and config.head.init != "he":
        if "head" in down:
            mine["head"] = records.pack({"head": down["head"]})
        elif "head" not in mine:
            return {"lacks": True}
    holds = mine.config_records["holds"]["round"] if "holds" in mine else 0
    if main and "snapshot" not in down and held not in (0, holds):
        return {"lacks": True}

    devices.keep_compilations()
    environment.check()
    client = _number(context, config)
    config.prefix_cache = _on_disk(config.prefix_cache)
    names = mine.config_records["classes"]["names"] if "classes" in mine else ()
    problem = set_up_client(config, client, its_own, names)
    me = Cohort(config.seed, asked["round"], np.array([client]), asked["phase"], asked["attempt"])
    if asked["phase"] == HEAD_PHASE:
        problem, method = heads.round_of_head(problem)
    else:
        if "head" in mine:
            head = heads.unpack(records.unpack(mine, "head")["head"], problem)
            problem = heads.with_fitted(problem, config, head)
        method = methods.build(config, problem.task)
    if method.inputs == "features":
        problem = with_features(problem)

    start = method.init()

    def over(state, arrays):
        return restore_state(state, named_arrays({"state": state}) | arrays)

    state = start
    if main and held == holds:  # what it holds, with what `remember` left of the last payload that counted
        state = over(state, records.kept(mine, "state"))
    own = records.kept(mine, "own")
    if "sent" in mine and list(mine.config_records["sent"]["at"]) == list(asked["counted"]):
        own |= records.kept(mine, "pending")
    state = over(state, own)
    for name in sorted(key for key in down if key.startswith("news-")):
        everyone = Cohort(config.seed, int(name[5:]), np.arange(config.clients))
        state = downlink.follow(method, state, down[name], everyone)
    if "snapshot" in down:
        state = over(state, named_arrays({"state": method.down.decode(down["snapshot"], me)}))

    answers = clients.work(problem, method, state, state, me)
    if main:
        first, known, after = (named_arrays({"state": x}) for x in (start, state, answers.state))
        pending = {name: x for name, x in after.items() if not np.array_equal(x, known[name])}
        learned = {name: x for name, x in known.items() if not np.array_equal(x, first[name])}
        mine["holds"] = ConfigRecord({"round": me.round - 1})
        mine["state"] = records.keep({name: x for name, x in learned.items() if name not in own})
        mine["own"], mine["pending"] = records.keep(own), records.keep(pending)
        mine["sent"] = ConfigRecord({"at": [me.round, me.attempt]})
    if answers.lost:
        return {"lost": answers.lost[0]}
    return {
        "payload": answers.payloads[0],
        "loss": float(answers.losses[0]),
        "examples": int(answers.cohort.weights()[0]),
    }


def _number(context: Context, config) -> int:
    """The client that this node is.

    Raises:
        ValueError: the node was not told, or there is no such client.
    """
    number = context.node_config.get("partition-id")
    if not isinstance(number, int) or not 0 <= number < config.clients:
        raise ValueError(
            f"partition-id is {number!r}: start flower-supernode with --node-config 'partition-id=K', "
            f"0 <= K < {config.clients}"
        )
    return number


def _on_disk(prefix_cache: str) -> str:
    """Where the frozen prefix's outputs stay: in a folder, for every message starts a process."""
    if prefix_cache != "memory":
        return prefix_cache
    return os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "deltamask_jax", "prefix")
