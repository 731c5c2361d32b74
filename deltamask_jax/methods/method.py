"""The seam every method fills: what it is given, and the functions it is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.local_training import LocalTraining
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
class Method:
    """One federated method.

    Attributes:
        name: as in `config.method`.
        inputs: 'tokens' if local training starts at the frozen prefix's output, 'features' if it needs only
            the network's final features.
        frozen: pytree of device arrays that no round changes, handed to `training`.
        training: what one client does.
        init: () -> server state.
        broadcast: (state, round) -> the payload every client of the cohort receives.
        receive: (payload, round) -> pytree local training starts from.
        private: (round, clients i[k]) -> pytree with leading axis k, handed to `training.final`.
        encode: (state, updates of k clients as NumPy trees, round, clients) -> k payloads.
        remember: (state, updates, payloads, round, clients) -> state, with what clients keep for their next
            round (error feedback); by default nothing. It is simulated: none of it is ever sent.
        decode: (state, payloads, round, clients) -> what `aggregate` needs of them. Raises `PayloadError`.
        aggregate: (state, decoded, clients, example counts, round) -> state.
        eval_params: (state) -> (params, head) of the network that is evaluated.
        describe: (updates with leading axis k, decoded) -> numbers for the round's line in metrics.jsonl.
        export: (state) -> named arrays worth keeping, saved as safetensors.
        diagnose: (state after the round, updates with leading axis k) -> what goes to diagnostics.jsonl.
    """

    name: str
    inputs: str
    frozen: Any
    training: LocalTraining
    init: Callable[[], Any]
    broadcast: Callable[[Any, int], bytes]
    receive: Callable[[bytes, int], Any]
    private: Callable[[int, np.ndarray], Any]
    encode: Callable[[Any, list, int, np.ndarray], list[bytes]]
    decode: Callable[[Any, list[bytes], int, np.ndarray], Any]
    aggregate: Callable[[Any, Any, np.ndarray, list[int], int], Any]
    eval_params: Callable[[Any], tuple[Any, dict[str, Any]]]
    describe: Callable[[Any, Any], dict[str, float]]
    export: Callable[[Any], dict[str, np.ndarray]]
    remember: Callable[[Any, list, list[bytes], int, np.ndarray], Any] = (
        lambda state, updates, payloads, round_number, clients: state
    )
    diagnose: Callable[[Any, Any], dict[str, Any]] = lambda state, updates: {}
