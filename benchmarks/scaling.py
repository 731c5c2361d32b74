"""What a round costs as clients, examples, masked weights d and devices grow.

    python -m benchmarks.scaling --quick
    python -m benchmarks.scaling --json scaling.json

clients   10 → 1,000, 20 of them in each round, all on one data set of 8,000 examples: seconds, and the most
          memory the process ever held.
examples  2,000 → 200,000 examples on the host, in an empty memory-mapped file, 4 clients of 25 in each round:
          seconds, and the most memory the process ever held.
d         1 M → 63 M: seconds of a step of two clients in a chunk, and the memory XLA says they need;
          of one client alone.
devices   the same eight clients on 1, 2, 4, 8 devices. On CPU these are pretended, they share the cores: the
          row then shows what sharding costs, not what it gains.
"""

import dataclasses
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from benchmarks import workload
from benchmarks.round import train_seconds
from deltamask_jax import devices, methods
from deltamask_jax.data import partition
from deltamask_jax.federation import cohort
from deltamask_jax.federation.engine import Engine
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.task import Cohort


def against_clients(clients: int) -> dict:
    problem = workload.problem("glyph", 1000, 8, 8, chunk=0)  # the data set is the same for every row
    problem = dataclasses.replace(problem, parts=problem.parts[:clients])
    return {"scaling": "clients", "clients": clients, **rounds_of(problem, min(20, clients))}


def against_examples(examples: int) -> dict:
    problem, clients = workload.problem("vit_s14", 4, 25, 25, chunk=0), 4
    rows = np.random.default_rng(0).permutation(examples)[: clients * 25]
    shape = (examples, *problem.inputs["tokens"][0].shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        tokens = np.lib.format.open_memmap(Path(folder, "tokens.npy"), "w+", np.float32, shape)
        problem = dataclasses.replace(
            problem,
            inputs={"tokens": (tokens, tokens[:1])},
            labels=(np.zeros(examples, np.int32), np.zeros(1, np.int32)),
            parts=list(rows.reshape(clients, 25)),
        )
        row = {"scaling": "examples", "examples": examples, "examples GiB": tokens.nbytes / 2**30}
        return row | rounds_of(problem, clients)


def rounds_of(problem, cohort: int, rounds: int = 3) -> dict:
    """Seconds of the fastest of some rounds, the first left out, and the process's peak memory until then."""
    method, clients = methods.build(problem.config, problem.task), len(problem.parts)
    state, seconds = method.init(), []
    for number in range(1, rounds + 1):
        chosen = Cohort(0, number, partition.cohort(clients, cohort / clients, 0, number))
        started = time.perf_counter()
        state, result = play_round(problem, method, state, chosen)
        seconds.append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"in a round": result.clients, "round s": min(seconds[1:]), "peak GiB": peak}


def against_d(model: str, batch: int = 8) -> dict:
    problem = workload.problem(model, 2, batch, batch, chunk=2)
    method = methods.build(problem.config, problem.task)
    state = method.init()
    row = {"scaling": "d", "model": model, "d": problem.task.index.d, "batch": batch}
    row["two clients a chunk, GiB"] = chunk_bytes(problem, method, state) / 2**30
    row["their step s"] = 2 * train_seconds(problem, method, state, 2)
    row["step s"] = train_seconds(problem, method, state, 1, Engine(problem.engine.mesh, chunk=1))
    return row


def chunk_bytes(problem, method, state) -> int:
    """Memory of a chunk of two clients beside weights and examples, from XLA's analysis; nothing is run."""
    mesh = devices.mesh(devices=jax.local_devices()[:1])
    asked = Cohort(0, 1, np.arange(2))
    received = devices.spread(method.start(state, asked), mesh)
    batch = problem.config.batch_size
    examples = {"inputs": problem.inputs["tokens"][0], "labels": problem.labels[0]}
    own = (
        {},
        np.ones(2, np.int32),
        np.arange(2 * batch, dtype=np.int32).reshape(2, 1, batch),
        method.private(state, asked),
        asked.keys(),
    )
    train_chunk = Engine(mesh).compiled(cohort._train_chunk, method.client, mesh)
    lowered = train_chunk.lower(method.frozen, received, examples, *devices.divided(own, mesh))
    used = lowered.compile().memory_analysis()
    return used.temp_size_in_bytes + used.output_size_in_bytes


def against_devices() -> list[dict]:
    problem = workload.problem("glyph", 8, 64, 16, chunk=1)
    method = methods.build(problem.config, problem.task)
    state, rows, everywhere = method.init(), [], jax.local_devices()
    for count in (n for n in (1, 2, 4, 8) if n <= len(everywhere)):
        mesh = devices.mesh(devices=everywhere[:count])
        seconds = 8 * train_seconds(problem, method, state, 8, Engine(mesh))
        rows.append({"scaling": "devices", "devices": count, "8 clients s": seconds})
    return rows


def in_a_process(part: str, flags: str = "") -> list[dict]:
    """Rows of one part from a process of its own: so is its peak memory, and its devices may be pretended."""
    environment = {**os.environ, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    environment["XLA_FLAGS"] = f"{environment.get('XLA_FLAGS', '')} {flags}".strip()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rows.json")
        command = [sys.executable, "-m", "benchmarks.scaling", f"--part={part}", f"--json={path}"]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text())["rows"]


def main() -> None:
    part = {"help": "only 'devices', 'clients=N' or 'examples=N'"}
    options = workload.options(__doc__, part=part)
    if options.part:
        name, _, size = options.part.partition("=")
        parts = {"clients": against_clients, "examples": against_examples}
        rows = against_devices() if name == "devices" else [parts[name](int(size))]
        workload.report(rows, options.json)
        return
    rows = []
    for clients in (10, 100) if options.quick else (10, 100, 1000):
        rows += in_a_process(f"clients={clients}")
    for examples in () if options.quick else (2_000, 200_000):
        rows += in_a_process(f"examples={examples}")
    models = ("glyph",) if options.quick else ("glyph", "vit_s14", "vit_b16", "vit_l14")
    rows += [against_d(model) for model in models]
    if not options.quick:
        pretended = "--xla_force_host_platform_device_count=8" if jax.default_backend() == "cpu" else ""
        rows += in_a_process("devices", pretended)
    workload.report(rows, options.json)


if __name__ == "__main__":
    main()
