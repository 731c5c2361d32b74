"""Simulated clients that fail: some never answer, some do part of their work, some come too late.

Every draw depends on (seed, round, attempt, client) alone, so a resumed run meets the same failures and a
client's luck does not depend on who else is in the cohort. How fast a client is depends on (seed, client).
"""

import dataclasses

import numpy as np

from deltamask_jax.federation.batches import Schedule
from deltamask_jax.task import Cohort

_LUCK, _SPEED = 0x6661756C, 0x73706565  # keep these streams apart from the shuffles'

NO_EXAMPLES, NO_ANSWER, LATE, NOT_FINITE = "no examples", "no answer", "late", "not finite"
FAILED = "failed"  # a real client's program ended with an error; simulated ones do not
FORGETFUL = (NO_ANSWER, FAILED)  # what such a client holds afterwards is unknown


def draw(config, plan: Schedule, cohort: Cohort) -> tuple[Schedule, dict[int, str]]:
    """What `config.faults` does to a cohort.

    A straggler finishes a uniform share of its steps, at least one. A client needs `step_seconds`, times its
    own log-normal factor, for a step; whoever needs longer than `deadline` is late.

    Args:
        plan: what the clients are asked to do.

    Returns:
        What they do (no steps for those who are lost, so nothing is computed for them), and why rows of the
        cohort are lost.
    """
    options = config.faults
    steps, lost = plan.steps.copy(), {}
    for row, client in enumerate(cohort.clients):
        dropped, straggles, share = np.random.default_rng(
            [config.seed, _LUCK, cohort.round, cohort.attempt, int(client)]
        ).random(3)
        if straggles < options.straggler:
            steps[row] = np.ceil(share * steps[row])
        seconds = steps[row] * options.step_seconds * slowness(config, int(client))
        if dropped < options.dropout:
            lost[row] = NO_ANSWER
        elif 0 < options.deadline < seconds:
            lost[row] = LATE
    steps[list(lost)] = 0
    return dataclasses.replace(plan, steps=steps), lost


def slowness(config, client: int) -> float:
    """A client's step time in units of `config.faults.step_seconds`: log-normal, median 1."""
    rng = np.random.default_rng([config.seed, _SPEED, client])
    return float(rng.lognormal(0.0, config.faults.speed_spread))


def without_examples(plan: Schedule) -> dict[int, str]:
    """Rows of the cohort that have nothing to train on. Their unchanged masks would only dilute the rest."""
    return {int(row): NO_EXAMPLES for row in np.flatnonzero(plan.steps == 0)}


def examples_seen(plan: Schedule) -> np.ndarray:
    """How many different examples each client trains on, i64[k]: its weight where examples are weights."""
    return np.array(
        [
            len(np.unique(batches[:steps][batches[:steps] >= 0]))
            for batches, steps in zip(plan.batches, plan.steps, strict=True)
        ]
    )
