"""Differential privacy: whose data a run protects, by what noise, and what that is worth (docs/privacy.md).

Both levels, `config.dp.level`, add Gaussian noise to sums of clipped vectors:

    example  DP-SGD (Abadi et al., arXiv 1607.00133) at every client. An example is in a batch with
             probability q; its gradient is clipped to norm C; the sum gets noise N(0, (zC)²) from the
             client's private key. All that the client makes of it, flips of masks too, is post-processing.
    client   DP-FedAvg (McMahan et al., arXiv 1710.06963). The server, which is trusted, clips every client's
             update to norm C, adds noise N(0, (zC)²) to their sum, and divides by how many it expected.

z is the noise multiplier. ε follows from z, q and how often data is used, by the accountants of dp-accounting
alone. Neighbouring data sets differ in one example of a client, or in one client, that is there or not.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from deltamask_jax import aggregation
from deltamask_jax.data import partition
from deltamask_jax.local_training import Batch, Gradient, LossAndGradient, of_batch
from deltamask_jax.task import HEAD_PHASE, Cohort

Mean = Callable[[list, Cohort, Any], Any]  # (updates, cohort, a pytree of their kind) -> their mean
Releases = tuple[tuple[float, int], ...]  # (sampling rate, how often) of each way that data is used

RDP_ORDERS = (*range(2, 64), 128, 256, 512, 1024)  # whole ones, which are quick and exact
_NOISE = 0x6E6F6973  # keeps the noise apart from what else a step draws
PLD_INTERVAL = 1e-3  # ten times the package's own: as much quicker, and ε larger by 0.01 % or less
MOST_FOR_PLD = 50.0  # ε beyond which the bound of RDP is enough: arrays of the PLD accountant grow with ε


def by_examples(updates: list, cohort: Cohort, like: Any) -> Any:
    """The mean weighted by example counts, which is not private."""
    return aggregation.weighted_mean(updates, cohort.weights())


@dataclasses.dataclass(frozen=True)
class Mechanism:
    """Where noise comes in; by default nowhere.

    Attributes:
        gradient: of a client's batch, see `local_training.Gradient`.
        mean: of a cohort's updates on the server.
    """

    gradient: Gradient = of_batch
    mean: Mean = by_examples


def mechanism(config) -> Mechanism:
    """What `config.dp` asks for.

    Raises:
        ValueError: the noise is not calibrated yet.
    """
    dp = config.dp
    if dp.level == "none":
        return Mechanism()
    if not dp.noise_multiplier:
        raise ValueError("config.dp.noise_multiplier=0: is calibrated by experiment.run; set it here")
    if dp.level == "example":
        return Mechanism(
            gradient=noisy_gradient(dp.clip, dp.noise_multiplier, config.batch_size, dp.microbatch)
        )
    expected = config.participation * config.clients
    if config.client_sampling == "fixed":
        expected = partition.cohort_size(config.clients, config.participation)
    return Mechanism(mean=noisy_mean(dp.clip, dp.noise_multiplier, expected, config.clients))


def noisy_gradient(clip: float, noise_multiplier: float, expected: float, microbatch: int) -> Gradient:
    """DP-SGD's gradient of a batch that `batches.poisson_schedule` drew.

    Args:
        clip: C, norm to which each example's gradient is clipped.
        noise_multiplier: z.
        expected: examples, which the noisy sum is divided by, however many the batch has.
        microbatch: most examples whose gradients are held at once; the batch has as few equal parts as that
            allows.
    """

    def gradient(loss_and_gradient: LossAndGradient, batch: Batch, key: jax.Array):
        def of_one(example):
            one = loss_and_gradient(jax.tree.map(lambda x: x[None], example))
            # What is not finite would pass the clipping, and would tell by dropping the client.
            return jax.tree.map(partial(jnp.nan_to_num, posinf=0, neginf=0), one)

        def add(i, total):
            losses, gradients = jax.vmap(of_one)(jax.tree.map(lambda x: x[i], groups))
            clipped, _ = optax.per_example_global_norm_clip(gradients, clip)
            return jax.tree.map(jnp.add, total, (jnp.sum(losses), clipped))

        shapes = jax.eval_shape(of_one, jax.tree.map(lambda x: x[0], batch))
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        parts = -(-batch["weights"].shape[0] // microbatch)
        groups = jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        drawn = jnp.any(groups["weights"] > 0, axis=1)
        used = jnp.max(jnp.where(drawn, jnp.arange(parts) + 1, 0))  # the rest is padding: it adds nothing
        loss, total = jax.lax.fori_loop(0, used, add, nothing)
        noise = optax.tree.random_like(jax.random.fold_in(key, _NOISE), total)
        noisy = jax.tree.map(lambda x, n: (x + noise_multiplier * clip * n) / expected, total, noise)
        return loss / jnp.maximum(jnp.sum(batch["weights"]), 1), noisy

    return gradient


def noisy_mean(clip: float, noise_multiplier: float, expected: float, everyone: int) -> Mean:
    """DP-FedAvg's mean, of equal weights and with a fixed denominator; of nobody it is noise alone.

    Args:
        clip: C, norm to which each update, a pytree, is clipped.
        noise_multiplier: z.
        expected: clients of a round; the head's round expects `everyone`.
    """

    def mean(updates: list, cohort: Cohort, like: Any) -> Any:
        of = everyone if cohort.phase == HEAD_PHASE else expected
        noise = optax.tree.random_like(cohort.server_key(), jax.tree.map(jnp.asarray, like))
        total = jax.tree.map(lambda n: noise_multiplier * clip * np.asarray(n), noise)
        for update in updates or []:
            clipped = optax.projections.projection_l2_ball(jax.tree.map(jnp.asarray, update), clip)
            total = jax.tree.map(lambda x, y: x + np.asarray(y), total, clipped)
        return jax.tree.map(lambda x: x / np.float32(of), total)

    return mean


def sampling_rate(examples: int, batch_size: int) -> float:
    """q, with which an example is in a batch: of `batch_size` on average, or of all a small client has."""
    return min(1.0, batch_size / max(examples, 1))


def local_steps(examples: int, epochs: int, batch_size: int) -> int:
    """Steps in which Poisson batches show as many examples as so many epochs do."""
    return round(epochs * max(examples, batch_size) / batch_size) if examples else 0


@dataclasses.dataclass(frozen=True)
class Account:
    """What a run spends.

    Attributes:
        config: the run's, with the noise multiplier in it.
        sizes: examples of each client, i[N].
    """

    config: Any
    sizes: np.ndarray

    def epsilon(self, rounds: int) -> float:
        """ε at `config.dp.delta` after the head's round and so many more: that of whoever fares worst."""
        dp = self.config.dp
        return worst(releases(self.config, self.sizes, rounds), dp.noise_multiplier, dp.delta)[0]

    def affords(self, rounds: int) -> bool:
        """Whether so many rounds stay within `config.dp.epsilon`."""
        return self.epsilon(rounds) <= self.config.dp.epsilon


def open_account(config, sizes: np.ndarray, noise_multiplier: float = 0.0) -> Account:
    """The account of a run whose clients have so many examples, i[N].

    Args:
        noise_multiplier: what was calibrated for this run before; 0 = nothing yet.

    Raises:
        ValueError: dp-accounting is missing, or the head's round alone costs more than the budget.
    """
    config, dp = config.copy_and_resolve_references(), config.dp
    planned = releases(config, sizes, config.rounds)
    config.dp.noise_multiplier = (
        dp.noise_multiplier or noise_multiplier or noise_for(planned, dp.epsilon, dp.delta)
    )
    account = Account(config, sizes)
    if not account.affords(0):
        raise ValueError(
            f"config.dp.epsilon={dp.epsilon:g} is less than the head's round costs with "
            f"config.dp.noise_multiplier={dp.noise_multiplier:g}: raise either, or use config.head.init='he'"
        )
    return account


def releases(config, sizes: np.ndarray, rounds: int) -> set[Releases]:
    """How the data of each protected unit is used in so many rounds; who fares like another is left out.

    Poisson cohorts amplify: who is asked is the server's secret, as a batch is the client's. Cohorts of a
    fixed size are counted as they are drawn.
    """
    head = config.head.init == "lp"
    if config.dp.level == "client" and config.client_sampling == "poisson":
        return {_tidy((1.0, int(head)), (config.participation, rounds))}
    asked = [
        partition.cohort(
            config.clients, config.participation, config.seed, n, sampling=config.client_sampling
        )
        for n in range(1, rounds + 1)
    ]
    participations = np.bincount(np.concatenate([*asked, np.arange(0)]), minlength=config.clients)
    if config.dp.level == "client":
        return {_tidy((1.0, int(head + participations.max())))}
    steps = partial(local_steps, batch_size=config.batch_size)
    return {
        _tidy(
            (
                sampling_rate(n, config.batch_size),
                head * steps(n, config.head.epochs) + times * steps(n, config.local_epochs),
            )
        )
        for n, times in zip(map(int, sizes), participations.tolist(), strict=True)
    }


def _tidy(*used: tuple[float, int]) -> Releases:
    return tuple((rate, count) for rate, count in used if count)


def noise_for(candidates: set[Releases], epsilon: float, delta: float) -> float:
    """A noise multiplier with which nobody's ε is more than `epsilon`.

    It is the least by PLD, to three digits. Where ε is near or above what PLD is asked about it is the least
    by RDP, up to a quarter larger; where half of RDP's is enough by PLD, about that half.
    """
    dp = accounting()
    whose = max(candidates, key=lambda used: _epsilon("rdp", used, 1.0, delta))
    while True:
        calibrate = partial(
            dp.calibrate_dp_mechanism,
            make_event_from_param=partial(_event, whose),
            target_epsilon=epsilon,
            target_delta=delta,
            tol=1e-3,
        )
        noise_multiplier = low = calibrate(_accountants()["rdp"])  # quick, and never too small
        if epsilon <= MOST_FOR_PLD:
            while low > noise_multiplier / 2 and _epsilon("pld", whose, low := 0.9 * low, delta) <= epsilon:
                pass
            tight = low
            if _epsilon("pld", whose, low, delta) > epsilon:
                near = dp.mechanism_calibration.ExplicitBracketInterval(low, noise_multiplier)
                tight = calibrate(_accountants()["pld"], bracket_interval=near)
            if _epsilon("rdp", whose, tight, delta) <= MOST_FOR_PLD:  # else `worst` takes RDP's word
                noise_multiplier = tight
        spent, whose = worst(candidates, noise_multiplier, delta)
        if spent <= epsilon:
            return float(noise_multiplier)


def worst(candidates: set[Releases], noise_multiplier: float, delta: float) -> tuple[float, Releases]:
    """The largest ε, by privacy loss distributions, and whose it is.

    No ε is larger than what RDP says, so the slower accountant is asked about few.
    """
    bounds = {used: _epsilon("rdp", used, noise_multiplier, delta) for used in candidates}
    most, whose = -math.inf, ()
    for used in sorted(bounds, key=bounds.__getitem__, reverse=True):
        if bounds[used] <= most:
            break
        exact = bounds[used] <= MOST_FOR_PLD
        spent = _epsilon("pld", used, noise_multiplier, delta) if exact else bounds[used]
        most, whose = max((most, whose), (spent, used))
    return most, whose


@cache
def _epsilon(kind: str, used: Releases, noise_multiplier: float, delta: float) -> float:
    if not used:
        return 0.0
    return float(_accountants()[kind]().compose(_event(used, noise_multiplier)).get_epsilon(delta))


def _event(used: Releases, noise_multiplier: float):
    """The same in the words of dp-accounting."""
    dp = accounting()
    gaussian = dp.GaussianDpEvent(noise_multiplier)
    return dp.ComposedDpEvent(
        [
            dp.SelfComposedDpEvent(gaussian if rate == 1 else dp.PoissonSampledDpEvent(rate, gaussian), count)
            for rate, count in used
        ]
    )


def _accountants() -> dict[str, Callable[[], Any]]:
    """PLD is tight to its discretisation; RDP is 6 to 10 % looser, and quick."""
    dp = accounting()
    one = dp.NeighboringRelation.ADD_OR_REMOVE_ONE
    return {
        "pld": lambda: dp.pld.PLDAccountant(one, PLD_INTERVAL),
        "rdp": lambda: dp.rdp.RdpAccountant(RDP_ORDERS, one),
    }


def accounting():
    """The package dp-accounting.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import dp_accounting
        import dp_accounting.pld
        import dp_accounting.rdp
    except ImportError:
        raise ValueError('config.dp needs dp-accounting: pip install "deltamask_jax[dp]"') from None
    return dp_accounting


def check_users(config, users: np.ndarray | None) -> str:
    """What a guarantee about clients does not say of users; '' where there is nothing to say.

    Args:
        users: who each training example came from, i[n]; None: the data does not say.

    Raises:
        ValueError: several users share a client.
    """
    if config.dp.level != "client" or users is None:
        return ""
    if config.partition.name != "users":
        return (
            f"partition {config.partition.name!r} spreads a user's examples over clients: "
            f"config.dp.level='client' protects a client, and no user; config.partition.name='users' makes "
            f"them one"
        )
    distinct = len(np.unique(users))
    if distinct > config.clients:
        raise ValueError(
            f"config.clients={config.clients}: partition 'users' puts {distinct} users on them, and "
            f"config.dp.level='client' is about one user per client: use --config.clients={distinct}"
        )
    return ""


def warning_about(delta: float, level: str, units: int) -> str:
    """What a δ means that is too large for so many protected units; '' where it is small enough."""
    if delta < 1 / units:
        return ""
    what = {"example": "examples", "client": "clients"}[level]
    return (
        f"config.dp.delta={delta:g} is not below 1/{units:,}, one over the number of {what}: to publish "
        f"{delta * units:.3g} of them on average, chosen at random, would keep this promise too"
    )
