"""One federated run, from config to results.

set up the problem, or pick it up where it was left; then each round: play it, evaluate, write its line and a
checkpoint; then pictures and the summary
"""

import dataclasses
import json
import logging
import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from deltamask_jax import codecs, devices, methods, metrics, privacy, progress
from deltamask_jax import config as config_lib
from deltamask_jax.data import partition
from deltamask_jax.evaluation import correctness
from deltamask_jax.federation import downlink, hosts
from deltamask_jax.federation.engine import TooLittleMemory
from deltamask_jax.federation.rounds import Round, play_until_enough
from deltamask_jax.heads import linear_probe_accuracy, with_head
from deltamask_jax.paths import expanded
from deltamask_jax.progress import say
from deltamask_jax.reporting import ledger, pictures
from deltamask_jax.reporting.trackers import Tracker, opened_trackers
from deltamask_jax.setup import set_up, set_up_server
from deltamask_jax.task import Problem
from deltamask_jax.workdir import environment, files
from deltamask_jax.workdir.checkpoint import Progress, restore_state
from deltamask_jax.workdir.journal import Journal


def run(config, workdir: str | Path, ask: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Run the experiment `config` describes and leave its results in `workdir`.

    A run that was interrupted continues; one that is finished is not repeated (workdir/journal.py). Where
    several processes run it together, all must call this, each with a workdir of its own.

    Args:
        ask: as of `Problem`, where clients are elsewhere; None: they are simulated.

    Returns:
        The contents of summary.json.

    Raises:
        ValueError: a setting, the data or the checkpoint is wrong, or the workdir holds another run; the
            message says what to change.
        OSError: the workdir cannot be written.
        FloatingPointError: the network's outputs are not finite.
        TooFewClients: a round could not gather `config.min_clients`, however often it was repeated.
        MemoryError: the device or the machine has too little memory for a round.
    """
    started = time.time()
    config_lib.validate(config)
    methods.check(config)
    if config.dp.level != "none":
        _check_privacy(ask)
    environment.check()
    if hosts.count() > 1:
        settings = {f"config.{name}": value for name, value in config_lib.flatten(config).items()}
        hosts.agree(settings | environment.program() | {"backend": jax.default_backend()})
    workdir = expanded(workdir)
    if workdir.name in ("", ".."):  # a run that is moved aside needs a name
        workdir = Path(os.path.abspath(workdir))
    with Journal(workdir, config) as journal:
        if journal.summary is None:
            with (
                _naming_the_culprit(config),
                opened_trackers(config, workdir) as trackers,  # one that is missing says so before any work
                progress.logged(workdir / "log.txt", started),
            ):
                journal.summary = _run(config, workdir, ask, journal, trackers, started)
        else:
            say(f"{workdir} is finished already; --config.resume=fresh runs it again")
        say(ledger.closing_table(journal.summary, workdir))
        return journal.summary


def _run(
    config,
    workdir: Path,
    ask: Callable[..., Any] | None,
    journal: Journal,
    trackers: list[Tracker],
    started: float,
) -> dict[str, Any]:
    compilations = devices.Compilations()
    problem = set_up(config, workdir) if ask is None else set_up_server(config, workdir)
    problem = dataclasses.replace(problem, ask=ask)
    account = _account(config, problem, workdir) if config.dp.level != "none" else None
    if account:
        config = account.config
        problem = dataclasses.replace(problem, config=config)
    methods.build(config, problem.task)  # one that is not for this model says so before the head is trained
    saved = journal.load(problem)
    if saved is None:
        problem, head_round = with_head(problem)
        # Clients elsewhere have better to do than to train a bracket.
        probe_accuracy = linear_probe_accuracy(problem) if ask is None else None
    else:
        task = dataclasses.replace(problem.task, head=jax.device_put(saved.head))
        problem, probe_accuracy = dataclasses.replace(problem, task=task), saved.probe_accuracy
        started -= saved.seconds
    method = methods.build(config, problem.task)
    d, rounds = problem.task.index.d, config.rounds
    probe = "" if probe_accuracy is None else f", linear probe {probe_accuracy:.1%}"
    say(
        f"{method.name} on {config.data}: {config.clients} clients, d = {d:,} masked weights{probe}; "
        "the first round also compiles"
    )

    correct_of = correctness(problem, method)
    state, records = method.init(), []
    memory = downlink.Memory.at_start(config.clients) if config.downlink.memory == "keep" else None
    if saved is not None:
        state, records = restore_state(state, saved.state), saved.records
        memory = memory and downlink.Memory.of(config.clients, saved.round, saved.held, saved.news)

    files.write_json(workdir / "environment.json", environment.describe())
    for flag, value in environment.unusual().items():
        say(f"{flag}={value} is set: a run without it may round differently, or go on where this one stops")
    shares = None
    if config.per_client_evaluation:
        train_labels, test_labels = map(np.asarray, problem.labels)
        shares = partition.test_split(problem.parts, train_labels, test_labels, seed=config.seed)
        held = partition.histogram(problem.parts, train_labels, test_labels.max() + 1)

    def evaluated(state, number: int) -> dict[str, float]:
        try:
            correct = correct_of(state)
        except FloatingPointError as error:
            raise FloatingPointError(f"round {number}: {error}") from None
        per_client = metrics.fairness(correct, shares, test_labels, held) if shares else {}
        return {"accuracy": float(np.mean(correct)), **per_client}

    def record(number: int, result: Round, evaluation: dict[str, float], seconds: float, last: bool) -> None:
        line = ledger.line_of(
            number,
            result,
            evaluation,
            d,
            seconds=seconds,
            compile_seconds=compilations.lap(),
            epsilon=account.epsilon(number) if account else None,
        )
        records.append(line)
        if last:
            Image.fromarray(codecs.picture(result.payload)).save(workdir / "payload.png")
        known = {} if memory is None else {"held": memory.held.tolist(), "news": list(memory.news)}
        now = Progress(
            state, problem.task.head, probe_accuracy, list(records), time.time() - started, **known
        )
        beside = {"clients.jsonl": result.each} | (
            {"diagnostics.jsonl": result.diagnostics} if result.diagnostics else {}
        )
        journal.commit(now, beside, last=last)
        for log in trackers:
            log(records[-1])

    if saved is None:
        # Round 0 is the head's: what it sent, and how good the network is before the first round.
        record(0, head_round, evaluated(state, 0), time.time() - started, last=False)
    first = records[-1]["round"] + 1
    spent = sum(r["uplink_bytes"] + r["downlink_bytes"] for r in records)

    def is_spent(number: int) -> bool:
        """Whether a budget lets no round follow this one."""
        return 0 < config.byte_budget <= spent or not (account is None or account.affords(number + 1))

    remaining = range(first, first if is_spent(first - 1) else rounds + 1)
    bar = progress.over(remaining, method.name, total=first - 1 + len(remaining))
    for number in bar:
        round_started = time.time()
        state, result = play_until_enough(problem, method, state, number, memory)
        memory = result.memory
        spent += result.uplink_bytes + result.downlink_bytes
        last = number == rounds or is_spent(number)
        evaluation = evaluated(state, number) if last or number % config.eval_every == 0 else {}
        record(number, result, evaluation, time.time() - round_started, last)
        known = next(r for r in reversed(records) if r["accuracy"] is not None)
        measured = "" if known is records[-1] else f" after round {known['round']}"
        note = (
            f"accuracy {known['accuracy']:.1%}{measured}, loss {result.train_loss:.3f}, "
            f"{metrics.three_digits(spent / 1e6)} MB up and down so far"
        )
        bar.set_postfix_str(note)
        progress.log(f"{method.name} {number}/{rounds}: {note}")
        if last:
            break

    played = records[-1]["round"]
    if account and played < rounds and not account.affords(played + 1):
        say(
            f"the privacy budget is spent after round {played}: ε = {records[-1]['epsilon']:.3f}, and one "
            f"more would exceed config.dp.epsilon={config.dp.epsilon:g}; the run ends with what it has"
        )
    learned = method.export(state)
    save_file(learned, workdir / f"{method.name}.safetensors")
    exported = {}
    if "mask" in learned and config.mask.evaluate != "threshold":  # an export stores the thresholded mask
        stored = methods.build(_thresholded(config), problem.task)
        exported = {"thresholded_accuracy": float(np.mean(correctness(problem, stored)(state)))}
    pictures.draw_curves(
        workdir / "curves.png", records, probe_accuracy, f"{method.name}, {config.model.name}, {config.data}"
    )
    summary = ledger.summarise(config, records, probe_accuracy, d, time.time() - started)
    summary = files.finite(summary | exported)
    journal.finish(summary)
    return summary


def _thresholded(config):
    """The same config, whose network has each weight whole or not at all."""
    config = config.copy_and_resolve_references()
    config.mask.evaluate = "threshold"
    return config


def _check_privacy(ask: Callable[..., Any] | None) -> None:
    """Refuse differential privacy where it could not be had or counted.

    Raises:
        ValueError: dp-accounting is missing, or clients are elsewhere.
    """
    privacy.accounting()
    if ask is not None:
        raise ValueError(
            "config.dp.level: noise and batches follow from config.seed, which the server of a real "
            "federation knows: differential privacy is simulated only (docs/privacy.md)"
        )


def _account(config, problem: Problem, workdir: Path) -> privacy.Account:
    """What the run may spend; its noise is calibrated once and stands in privacy.json."""
    dp, sizes, path = config.dp, np.array(list(map(len, problem.parts))), workdir / "privacy.json"
    units = int(sizes.sum()) if dp.level == "example" else config.clients
    if warning := privacy.warning_about(dp.delta, dp.level, units):
        logging.warning(warning)
    of = {
        "setting": config_lib.flatten(dp),
        "releases": sorted(privacy.releases(config, sizes, config.rounds)),
    }
    of = json.loads(files.to_json(of))  # as it comes back from the file
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict) or known.get("of") != of:
        known = {}
        if not dp.noise_multiplier:
            say(f"privacy: calibrating the noise to ε = {dp.epsilon:g}, δ = {dp.delta:g}")
    account = privacy.open_account(config, sizes, known.get("noise_multiplier", 0.0))
    files.write_json(path, {"noise_multiplier": account.config.dp.noise_multiplier, "of": of})
    say(
        f"privacy: one {dp.level}, noise multiplier {account.config.dp.noise_multiplier:.4f}, "
        f"ε = {account.epsilon(config.rounds):.3f} after {config.rounds} rounds at δ = {dp.delta:g}"
    )
    return account


@contextmanager
def _naming_the_culprit(config) -> Generator[None]:
    """Errors of memory in words that say which setting to change."""
    elsewhere = "which is another config and needs another --workdir; this one keeps its rounds"
    try:
        yield
    except TooLittleMemory as error:
        raise MemoryError(f"{error}, {elsewhere}") from error
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        first = (str(error).strip().splitlines() or ["no more is known"])[0]
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in first:
            raise
        chunk = "set config.cohort.chunk=1, " if config.cohort.chunk != 1 else ""
        raise MemoryError(
            f"out of memory ({first[:160]}): {chunk}lower config.batch_size or config.model.trained_blocks, "
            f"{elsewhere}"
        ) from error
