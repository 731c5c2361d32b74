"""The values that everything passes: what is trained, on whose data, and who takes part in a round."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax.codecs.codec import SERVER
from deltamask_jax.data.features import TokensOnDemand
from deltamask_jax.federation.engine import Engine
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.models import Model
from deltamask_jax.private_random import root_key
from deltamask_jax.public_random import Key, stream_key

HEAD_PHASE, MAIN_PHASE, PROBE_PHASE = range(3)  # each shuffles its examples with a stream of its own


@dataclasses.dataclass(frozen=True)
class Task:
    """What every method is given.

    Attributes:
        model: the network, cut where training starts.
        params: pretrained parameters, frozen.
        head: {'kernel': f32[features, classes], 'bias': f32[classes]}.
        index: the masked kernels, d of them.
    """

    model: Model
    params: Any
    head: dict[str, Any]
    index: FlatIndex


@dataclasses.dataclass(frozen=True)
class Problem:
    """The federated task, the same for every method.

    Attributes:
        inputs: {'tokens' | 'features': (train, test)}, device arrays; tokens that are too large for a device
            are NumPy arrays, and with config.prefix_cache='off' `TokensOnDemand`. In a real federation the
            server's train and a client's test are empty.
        labels: (train i32[n], test i32[m]).
        parts: each client's training indices; where a client is alone, the others' only count.
        engine: the devices, and what is compiled for them.
        examples: a hash of all images or texts, by which a continued run knows them; '' of images that are
            read only when they are needed.
        class_names: of the labels.
        ask: (problem, method, state, cohort, memory) -> `federation.clients.Answers`, from clients that are
            elsewhere; None: they are simulated here.
    """

    config: Any
    task: Task
    inputs: dict[str, tuple[jax.Array | np.ndarray | TokensOnDemand, ...]]
    labels: tuple[jax.Array, jax.Array]
    parts: list[np.ndarray]
    engine: Engine
    examples: str = ""
    class_names: tuple[str, ...] = ()
    ask: Callable[..., Any] | None = None


@dataclasses.dataclass(frozen=True)
class Cohort:
    """Who takes part, and when.

    Attributes:
        seed: the run's public seed.
        round: from 1; 0 is the head's.
        clients: ids, i[k].
        phase: one of the phases above.
        attempt: how often this round was played before.
        examples: how many different examples each client trained on, i64[k]; None before they have.
    """

    seed: int
    round: int
    clients: np.ndarray
    phase: int = MAIN_PHASE
    attempt: int = 0
    examples: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.clients)

    def of(self, rows: Any) -> "Cohort":
        """The same for some of the clients."""
        examples = None if self.examples is None else self.examples[rows]
        return dataclasses.replace(self, clients=self.clients[rows], examples=examples)

    def weights(self) -> list[int]:
        """How many examples each client trained on, as a mean of what they send weighs them.

        Raises:
            ValueError: they have not trained yet.
        """
        if self.examples is None:
            raise ValueError("a cohort that has not trained has no weights")
        return self.examples.tolist()

    def stream(self, purpose: int, client: int) -> Key:
        """A public stream of this round, see `public_random`."""
        return stream_key(self.seed, self.round, int(client), purpose)

    def key(self, client: int) -> jax.Array:
        """A client's private key of this round."""
        return jax.random.fold_in(self._root(), client)

    def server_key(self) -> jax.Array:
        """The server's private key of this round."""
        return jax.random.fold_in(self._root(), SERVER)

    def keys(self) -> jax.Array:
        """Every client's private key of this round, key[k]."""
        now = np.uint32(self.phase), np.uint32(self.round)
        return _keys(root_key(self.seed), *now, jnp.asarray(self.clients))

    def _root(self) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(root_key(self.seed), self.phase), self.round)


@jax.jit
def _keys(root: jax.Array, phase: jax.Array, round: jax.Array, clients: jax.Array) -> jax.Array:
    """Each client's private key of a round, key[k], from the run's."""
    root = jax.random.fold_in(jax.random.fold_in(root, phase), round)
    return jax.vmap(lambda client: jax.random.fold_in(root, client))(clients)
