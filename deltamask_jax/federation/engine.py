"""The engine of a run: its devices, what is compiled for them, and how many clients each trains at once.

A chunk of clients pays where batched products keep a device busier than single ones, and costs one copy of
everything that trains a client. Accelerators take as many clients as fit, but at least `CHUNKS` chunks a
cohort, so that the host can code one while the next trains. On CPU a client's own products already fill the
cores, and copies of batched operands cost more than the products gain (docs/performance.md).
"""

import dataclasses
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jax.stages import Wrapped

from deltamask_jax import devices
from deltamask_jax.progress import say

CHUNKS = 4  # a cohort on an accelerator
CPU_BYTES = 1 << 21  # what clients of a chunk receive, together, on CPU: only linear heads are that small
MEMORY_SHARE = 0.8  # of what is free: the analysis leaves out the allocator's own losses


class TooLittleMemory(MemoryError):
    """A device cannot train a single client; the message says which settings help."""


@dataclasses.dataclass(frozen=True, eq=False)
class Engine:
    """Made once a run. What it learns and compiles is its own, and goes when the run goes.

    Attributes:
        mesh: the devices, see `devices.mesh`.
        backend: 'vmap', or 'loop': one client and one step after another in Python, for debugging.
        chunk: clients each device trains at once by vmap; 0 = chosen here. It is halved, and the clients
            concerned start again, when a device runs out of memory.
        memory: bytes that a device may use for chosen chunks; 0 = most of what is free.
        usual: clients of a usual cohort, for which chunks are chosen; 0 = that of the first cohort.
    """

    mesh: Mesh
    backend: str = "vmap"
    chunk: int = 1
    memory: int = 0
    usual: int = 0
    _compiled: dict[Hashable, Wrapped] = dataclasses.field(default_factory=dict, init=False, repr=False)
    _chosen: dict[Hashable, int] = dataclasses.field(default_factory=dict, init=False, repr=False)
    _ceiling: dict[Hashable, int] = dataclasses.field(default_factory=dict, init=False, repr=False)

    def compiled(self, function: Callable, *fixed: Hashable) -> Wrapped:
        """`function` jitted, its first arguments fixed; one and the same however often it is asked for.

        jax keeps what it compiled as long as the jitted function lives: here, as long as the engine. A
        module's own `jax.jit(static_argnums=…)` would keep the `fixed` for good, and the network with them.
        """
        key = (function, *fixed)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(partial(function, *fixed))
        return self._compiled[key]

    def clients_at_once(
        self, program: Hashable, clients: int, received: Any, memory_of: Callable[[int], int]
    ) -> int:
        """How many clients each device trains at once.

        Args:
            program: names what is compiled; each is measured once.
            clients: in the cohort.
            received: what each client starts from; its size stands for that of a client's state.
            memory_of: (chunk) -> bytes on each device, beside what lies there already.
        """

        def share(clients: int) -> int:
            """Of each device, at most."""
            its = -(-clients // self.mesh.shape[devices.CLIENTS])
            return min(its, self._ceiling.get(program, its))

        most = share(clients)
        if self.chunk:
            return min(self.chunk, most)
        if program not in self._chosen:
            platform = self.mesh.devices.flat[0].platform
            budget = self.memory or int(MEMORY_SHARE * devices.free_memory())
            chunk = _wanted(share(self.usual or clients), received, platform)
            while (used := memory_of(chunk)) > budget and chunk > 1:
                chunk = max(1, min(chunk - 1, chunk * budget // used))
            self._chosen[program] = chunk
            say(
                f"cohort: {chunk} client(s) at a time on each of {self.mesh.size} {platform} device(s); "
                f"{used / 2**20:,.0f} MiB of {budget / 2**20:,.0f} (config.cohort.chunk changes it)"
            )
        return min(self._chosen[program], most)

    def halve(self, program: Hashable, chunk: int, error: Exception) -> int:
        """The chunk to go on with after a failure.

        Raises:
            TooLittleMemory: the chunk was one client already.
            jax.errors.JaxRuntimeError: the failure given, which was about something else.
        """
        if "RESOURCE_EXHAUSTED" not in str(error) and "out of memory" not in str(error).lower():
            raise error
        if chunk == 1:
            raise TooLittleMemory(
                "training one client does not fit into the device's memory: lower config.batch_size, set "
                "config.model.remat, leave the examples on the host (config.cohort.memory), or spread the "
                "weights over more devices (config.cohort.weight_shards)"
            ) from error
        self._ceiling[program] = chunk // 2
        say(f"out of memory with {chunk} clients at a time; going on with {chunk // 2}")
        return chunk // 2


def from_config(config, usual: int = 0) -> Engine:
    """The engine that `config.cohort` describes, on all devices of this process.

    Args:
        usual: as of `Engine`.
    """
    cohort = config.cohort
    return Engine(
        devices.mesh(cohort.weight_shards),
        cohort.backend,
        cohort.chunk,
        int(cohort.memory * 2**30),
        usual,
    )


def _wanted(most: int, received: Any, platform: str) -> int:
    """The chunk speed asks for, before memory is looked at."""
    if platform != "cpu":
        return -(-most // CHUNKS)
    state = sum(4 * np.size(leaf) for leaf in jax.tree.leaves(received))
    return max(1, min(most, CPU_BYTES // max(state, 1)))
