"""The machine: a mesh over this process's devices, their memory, and what compiling costs.

Mesh axes: `clients` divides the cohort, and the examples where no clients are; `weights` divides every large
array of the frozen network and of the state that trains (logits, Adam moments), for masks too large for one
device.
"""

import contextlib
import logging
import os
import tempfile
from collections.abc import Generator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from deltamask_jax.paths import expanded

CLIENTS, WEIGHTS = "clients", "weights"
SPREAD_FROM = 1 << 12  # elements; smaller arrays are copied to every device
SYSTEM = Path("/")
LIMITS = (  # of a container, by cgroup v2 and v1: the folder, its files of the limit and of what is in use
    ("sys/fs/cgroup", "memory.max", "memory.current"),
    ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
)


def mesh(weight_shards: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """Devices as clients × weights; by default all of this process.

    Raises:
        ValueError: the number of devices is no multiple of `weight_shards`.
    """
    devices = devices or jax.local_devices()
    if len(devices) % weight_shards:
        raise ValueError(
            f"config.cohort.weight_shards={weight_shards}: must divide the {len(devices)} local devices"
        )
    shape = (len(devices) // weight_shards, weight_shards)
    return Mesh(np.array(devices).reshape(shape), (CLIENTS, WEIGHTS), axis_types=(AxisType.Auto,) * 2)


def weight_spec(shape: tuple[int, ...], shards: int) -> PartitionSpec:
    """Which axis of an array `weights` divides: the longest that it divides evenly; none of a small array."""
    axes = [axis for axis, size in enumerate(shape) if size % shards == 0]
    if shards == 1 or not axes or np.prod(shape) < SPREAD_FROM:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*[None] * longest, WEIGHTS)


def spread(tree: Any, mesh: Mesh) -> Any:
    """A pytree on every device, large arrays divided along `weights`; what lies there already stays."""
    shards = mesh.shape[WEIGHTS]
    shardings = jax.tree.map(lambda x: NamedSharding(mesh, weight_spec(np.shape(x), shards)), tree)
    return jax.device_put(tree, shardings)


def everywhere(tree: Any, mesh: Mesh) -> Any:
    """A pytree with a whole copy on every device; what lies there already stays."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def keep_spread(tree: Any, mesh: Mesh) -> Any:
    """Inside a jitted program over clients: tell the compiler to keep large arrays [clients, ...] divided."""
    shards = mesh.shape[WEIGHTS]
    if shards == 1:
        return tree
    return jax.tree.map(
        lambda x: jax.lax.with_sharding_constraint(x, PartitionSpec(None, *weight_spec(x.shape[1:], shards))),
        tree,
    )


def divided(tree: Any, mesh: Mesh) -> Any:
    """A pytree whose leading axis (clients, or examples) is divided over the mesh axis `clients`."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(CLIENTS)))


def host() -> contextlib.AbstractContextManager:
    """Where a codec's own jitted work belongs: on the host, not in the queue behind a chunk's training."""
    if jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    return jax.default_device(jax.local_devices(backend="cpu")[0])


def free_memory() -> int:
    """Bytes one device can still give: its allocator's limit less what is in use; on CPU a device's share
    of the memory the system calls available."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats["bytes_in_use"]
    return available_ram() // jax.local_device_count()


def have_room_for(examples: int, memory: float = 0.0) -> bool:
    """Whether every device can hold so many bytes of examples.

    Args:
        memory: GiB that they may take; 0 = half of what is free.
    """
    return examples <= (memory * 2**30 or free_memory() / 2)


def available_ram() -> int:
    """Bytes of memory the system can still give, or the container this runs in where that is less."""
    return max(0, min([_available_to_all(), *_left_to_a_container()]))


def _available_to_all() -> int:
    try:
        for line in (SYSTEM / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:  # not Linux
        pass
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def _left_to_a_container() -> Generator[int]:
    """Bytes below each limit. Pages of files count as free, as they do in MemAvailable."""
    for name, limit, usage in LIMITS:
        folder = SYSTEM / name
        try:
            left = int((folder / limit).read_text()) - int((folder / usage).read_text())
            held = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no such limit, or 'max'
            continue
        yield left + int(held.get("active_file", 0)) + int(held.get("inactive_file", 0))


def keep_compilations() -> None:
    """Compiled programs stay in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR names another
    ('' = none). Without a folder that can be written the run compiles anew, and says so."""
    named = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if named == "" or "://" in (named or ""):  # none, or a bucket, which is for jax to open
        return
    try:
        folder = Path(named) if named else _usual_cache()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
    except (OSError, ValueError) as error:
        if named:
            jax.config.update("jax_compilation_cache_dir", None)  # else jax warns of every program
        logging.warning(
            "compiled programs are not kept (%s); JAX_COMPILATION_CACHE_DIR %s",
            error,
            "must name a folder that can be written" if named else "names a folder",
        )
        return
    if not named:
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _usual_cache() -> Path:
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "deltamask_jax" / "xla"


class Compilations:
    """The seconds this process spends compiling with XLA, or reading what an earlier one compiled."""

    _so_far = 0.0  # of the process: one listener serves every run

    def __init__(self):
        self._last = Compilations._so_far

    @staticmethod
    def _heard(event: str, duration_secs: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            Compilations._so_far += duration_secs

    def lap(self) -> float:
        """Seconds since the last lap, or the start."""
        before, self._last = self._last, Compilations._so_far
        return self._last - before


jax.monitoring.register_event_duration_secs_listener(Compilations._heard)
