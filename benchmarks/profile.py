"""Where the devices spend a training chunk, by operation: seconds, share, and calls.

    python -m benchmarks.profile --model=vit_s14 --clients=2 --examples=50 --batch=25
    python -m benchmarks.profile --model=vit_b16 --clients=8 --examples=256 --batch=64 --dtype=bfloat16

From the profiler's trace of one call of the compiled chunk, after one that compiles. What runs on several
threads or streams at once is added up, so that the sum may exceed the time that passed. Command buffers of a
GPU hide what is in them: they are off.
"""

import collections
import os
import tempfile
from pathlib import Path

import jax

from benchmarks import workload
from benchmarks.round import train_seconds
from deltamask_jax import devices, methods
from deltamask_jax.federation.engine import Engine


def operations(folder: str) -> dict[str, tuple[float, int]]:
    """Seconds and calls of every operation in the newest trace of a folder, by the name XLA gives it."""
    newest = max(Path(folder).rglob("*.xplane.pb"), key=lambda path: path.stat().st_mtime)
    seconds, calls = collections.Counter(), collections.Counter()
    for plane in jax.profiler.ProfileData.from_file(str(newest)).planes:
        if not plane.name.startswith(("/device:", "/host:CPU")):
            continue
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats:
                    seconds[stats["hlo_op"]] += event.duration_ns * 1e-9
                    calls[stats["hlo_op"]] += 1
    return {name: (seconds[name], calls[name]) for name in seconds}


def main() -> None:
    os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_command_buffer="
    flags = {"model": "glyph", "clients": 2, "examples": 32, "batch": 16, "chunk": 0, "top": 30}
    options = workload.options(
        __doc__,
        dtype={"default": "float32"},
        **{name: {"type": type(value), "default": value} for name, value in flags.items()},
    )
    problem = workload.problem(
        options.model, options.clients, options.examples, options.batch, dtype=options.dtype
    )
    method = methods.build(problem.config, problem.task)
    engine = Engine(devices.mesh(), chunk=options.chunk or options.clients)
    wall = options.clients * train_seconds(problem, method, method.init(), options.clients, engine)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            train_seconds(problem, method, method.init(), options.clients, engine, repeats=0)
        found = operations(folder)
    total = sum(seconds for seconds, _ in found.values())
    rows = [
        {"operation": name, "s": seconds, "share": seconds / total, "calls": calls}
        for name, (seconds, calls) in sorted(found.items(), key=lambda item: -item[1][0])
    ]
    rows = [{"operation": "passed", "s": wall, "share": wall / total}, *rows[: options.top]]
    workload.report(rows, options.json)


if __name__ == "__main__":
    main()
