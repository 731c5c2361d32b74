"""Which examples each client sees at each step of a round: shuffled batches, or Poisson ones for privacy.

Each client owns a list of indices into the examples, so nothing is truncated; what a client does not have is
padding. The arrays are as long as the largest of all clients needs: rounds with other cohorts do not compile
again.
"""

import dataclasses

import numpy as np
from scipy import stats

from deltamask_jax import privacy
from deltamask_jax.task import Cohort


@dataclasses.dataclass(frozen=True)
class Schedule:
    """Which examples each client of the cohort sees at each step.

    Attributes:
        batches: i32[clients, steps, batch] indices into the examples, −1 for padding; no wider than the
            largest client.
        steps: i32[clients], how many steps each client has.
        largest: examples of the largest client, of this cohort or not.
    """

    batches: np.ndarray
    steps: np.ndarray
    largest: int

    def of(self, rows: slice | list[int]) -> "Schedule":
        """The same for some of the clients."""
        return dataclasses.replace(self, batches=self.batches[rows], steps=self.steps[rows])


def num_steps(examples: int, epochs: int, batch_size: int) -> int:
    """Steps of a client with that many examples; the last batch of an epoch may be partly padding."""
    return epochs * -(-examples // batch_size)


def schedule(
    parts: list[np.ndarray],
    cohort: Cohort,
    *,
    epochs: int,
    batch_size: int,
) -> Schedule:
    """Each client's shuffled batches for one round.

    Args:
        parts: every client's example indices i[n], not only the cohort's: the array is as long as the largest
            client needs, so that rounds with other cohorts do not compile again.
        cohort: who trains; the shuffle follows from seed, phase, round and client.
        epochs: passes over a client's examples.
        batch_size: examples per step; no larger than the largest client, as the rest would be padding.
    """
    largest = max(map(len, parts))
    batch_size = max(1, min(batch_size, largest))  # steps stay the same
    longest = num_steps(largest, epochs, batch_size)
    batches = np.full((len(cohort), longest * batch_size), -1, np.int32)
    steps = np.zeros(len(cohort), np.int32)
    for row, client in enumerate(cohort.clients):
        part = parts[client]
        rng = np.random.default_rng([cohort.seed, cohort.phase, cohort.round, int(client)])
        stride = num_steps(len(part), 1, batch_size) * batch_size  # epochs start on a new batch
        for epoch in range(epochs):
            batches[row, epoch * stride : epoch * stride + len(part)] = rng.permutation(part)
        steps[row] = num_steps(len(part), epochs, batch_size)
    return Schedule(batches.reshape(len(cohort), longest, batch_size), steps, largest)


def poisson_schedule(
    parts: list[np.ndarray],
    cohort: Cohort,
    *,
    epochs: int,
    batch_size: int,
    microbatch: int,
) -> Schedule:
    """The same with Poisson batches, as the accounting of DP-SGD supposes: privacy.py.

    Each example is in each batch with probability q, whatever else is. Batches are padded to a width that one
    in a million exceeds; where one does, all become wider, and a program is compiled for them: none is cut.

    Args:
        batch_size: examples expected per batch; a client that has fewer gives all of them.
        microbatch: a batch is as many equal parts as it needs for none to be wider than this.
    """
    sizes = np.array([len(part) for part in parts])
    rates = {n: privacy.sampling_rate(n, batch_size) for n in map(int, sizes)}
    longest = privacy.local_steps(int(sizes.max()), epochs, batch_size)
    drawn, steps = [], np.zeros(len(cohort), np.int32)
    for row, client in enumerate(cohort.clients):
        part = parts[client]
        rng = np.random.default_rng([cohort.seed, cohort.phase, cohort.round, int(client)])
        steps[row] = privacy.local_steps(len(part), epochs, batch_size)
        taken = rng.random((steps[row], len(part))) < rates[len(part)]
        drawn.append([part[its] for its in taken])
    usual = max(int(stats.binom.isf(1e-6, n, rate)) for n, rate in rates.items())
    width = max(1, usual, *(len(batch) for batches in drawn for batch in batches))
    groups = -(-width // microbatch)
    batches = np.full((len(cohort), longest, groups * -(-width // groups)), -1, np.int32)
    for row, its in enumerate(drawn):
        for step, batch in enumerate(its):
            batches[row, step, : len(batch)] = batch
    return Schedule(batches, steps, int(sizes.max()))
