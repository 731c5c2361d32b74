"""The seam every method fills: the functions it is made of."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from deltamask_jax.codecs import PayloadError
from deltamask_jax.local_training import LocalTraining


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
        decode: (state, payloads, round, clients) -> what `aggregate` needs of the valid ones, and the
            `PayloadError` of each of the others by its place. Every payload is decoded once.
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
    decode: Callable[[Any, list[bytes], int, np.ndarray], tuple[Any, dict[int, PayloadError]]]
    aggregate: Callable[[Any, Any, np.ndarray, list[int], int], Any]
    eval_params: Callable[[Any], tuple[Any, dict[str, Any]]]
    describe: Callable[[Any, Any], dict[str, float]]
    export: Callable[[Any], dict[str, np.ndarray]]
    remember: Callable[[Any, list, list[bytes], int, np.ndarray], Any] = (
        lambda state, updates, payloads, round_number, clients: state
    )
    diagnose: Callable[[Any, Any], dict[str, Any]] = lambda state, updates: {}
