"""The values that everything passes: what is trained, and on whose data."""

import dataclasses
from typing import Any

import jax
import numpy as np

from deltamask_jax.data.features import TokensOnDemand
from deltamask_jax.federation.engine import Engine
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.models import Model


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
            are NumPy arrays, and with config.prefix_cache='off' `TokensOnDemand`.
        labels: (train i32[n], test i32[m]).
        parts: each client's training indices.
        engine: the devices, and what is compiled for them.
    """

    config: Any
    task: Task
    inputs: dict[str, tuple[jax.Array | np.ndarray | TokensOnDemand, ...]]
    labels: tuple[jax.Array, jax.Array]
    parts: list[np.ndarray]
    engine: Engine
