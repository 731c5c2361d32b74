"""How many clients a device trains at once: chosen from its memory, halved when that was too much.

A chunk pays where batched products keep a device busier than single ones, and costs one copy of everything
that trains a client. Accelerators take as many clients as fit, but at least `CHUNKS` chunks a cohort, so that
the host can code one while the next trains. On CPU a client's own products already fill the cores, and
copies of batched operands cost more than the products gain (docs/performance.md).
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from deltamask_jax import devices

CHUNKS = 4  # a cohort on an accelerator
CPU_BYTES = 1 << 21  # what clients of a chunk receive, together, on CPU: only linear heads are that small
MEMORY_SHARE = 0.8  # of what is free: the analysis leaves out the allocator's own losses

_chosen: dict[Any, int] = {}  # program -> chunk
_ceiling: dict[Any, int] = {}  # program -> half of what ran out of memory


def choose(
    program: Any,
    asked: int,
    clients: int,
    mesh: Mesh,
    received: Any,
    memory_of: Callable[[int], int],
    memory: int = 0,
) -> int:
    """Clients a device trains at once.

    Args:
        program: hashable name of what is compiled; each is measured once.
        asked: the setting; 0 = choose here.
        clients: in the cohort.
        mesh: the devices they are divided over.
        received: what each client starts from; its size stands for that of a client's state.
        memory_of: (chunk) -> bytes on each device, beside what lies there already.
        memory: bytes the chunk may use on each device; 0 = most of what is free.
    """
    most = -(-clients // mesh.shape[devices.CLIENTS])
    most = min(most, _ceiling.get(program, most))
    if asked:
        return min(asked, most)
    if program not in _chosen:
        budget = memory or int(MEMORY_SHARE * devices.free_memory())
        chunk = _wanted(most, received, mesh.devices.flat[0].platform)
        while (used := memory_of(chunk)) > budget and chunk > 1:
            chunk = max(1, min(chunk - 1, chunk * budget // used))
        _chosen[program] = chunk
        tqdm.write(
            f"cohort: {chunk} client(s) at a time on each of {mesh.size} {mesh.devices.flat[0].platform} "
            f"device(s); {used / 2**20:,.0f} MiB of {budget / 2**20:,.0f} (config.cohort.chunk changes it)"
        )
    return min(_chosen[program], most)


def _wanted(most: int, received: Any, platform: str) -> int:
    """The chunk speed asks for, before memory is looked at."""
    if platform != "cpu":
        return -(-most // CHUNKS)
    state = sum(4 * np.size(leaf) for leaf in jax.tree.leaves(received))
    return max(1, min(most, CPU_BYTES // max(state, 1)))


def halve(program: Any, chunk: int, error: Exception) -> int:
    """The chunk to go on with after a failure.

    Raises:
        MemoryError: the chunk was one client already.
        jax.errors.JaxRuntimeError: the failure given, which was about something else.
    """
    if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
        raise error
    if chunk == 1:
        raise MemoryError(
            "training one client does not fit into the device's memory: lower config.batch_size, set "
            "config.model.remat, leave the examples on the host (config.cohort.memory), or spread the "
            "weights over more devices (config.cohort.weight_shards)"
        ) from error
    _ceiling[program] = chunk // 2
    tqdm.write(f"out of memory with {chunk} clients at a time; going on with {chunk // 2}")
    return chunk // 2
