"""What the speed benchmarks share: a federated problem on random weights and tokens, and the machine's rates.

Nothing is read from disk. Tokens stand for the frozen prefix's cached outputs; weights are random, which
changes no shape and no byte count but that of the payloads.
"""

import argparse
import json
import os
import platform
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from configs import common
from deltamask_jax import devices, methods, models
from deltamask_jax.federation import engine
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.task import Cohort, Problem, Task

CLASSES = 10
MODELS = {  # name -> (preset, pixels)
    "vit_s14": ("dinov2_small", 84),
    "vit_b16": ("vit_b16", 224),
    "vit_l14": ("dinov2_large", 84),
    "glyph": ("glyph_vit", 32),
    "tiny": ("tiny_vit", 32),
}


def options(description: str, **more) -> argparse.Namespace:
    """The flags every benchmark has, and `more`: name -> arguments of `add_argument`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a part of it, in under a minute")
    parser.add_argument("--json", type=Path, help="write the rows here")
    for name, arguments in more.items():
        parser.add_argument(f"--{name}", **arguments)
    devices.keep_compilations()
    return parser.parse_args()


def problem(
    model: str, clients: int, examples: int, batch_size: int, *, dtype: str = "float32", **cohort
) -> Problem:
    """A DeltaMask problem: `clients` of `examples` each; settings of `config.cohort` in `cohort`."""
    preset, pixels = MODELS[model]
    config = common.get_config()
    config.clients, config.batch_size = clients, batch_size
    config.model.name, config.model.checkpoint = preset, ""
    config.model.image_size, config.model.dtype = pixels, dtype
    config.cohort.update(cohort)
    network = models.build(config.model)
    run = engine.from_config(config)
    params = devices.spread(network.init(jax.random.key(0)), run.mesh)
    n = clients * examples
    image = jax.ShapeDtypeStruct((n, pixels, pixels, 3), jnp.float32)
    shape = jax.eval_shape(network.prefix, params, image).shape
    tokens = jax.jit(lambda key: jax.random.normal(key, shape, jnp.dtype(dtype)))(jax.random.key(1))
    head = {"kernel": jnp.full((network.feature_dim, CLASSES), 0.01), "bias": jnp.zeros(CLASSES)}
    labels = jnp.asarray(np.random.default_rng(0).integers(0, CLASSES, n).astype(np.int32))
    return Problem(
        config=config,
        task=Task(network, params, head, FlatIndex.create(params, network.masked)),
        inputs={"tokens": (tokens, tokens[:1])},
        labels=(labels, labels[:1]),
        parts=list(np.arange(n).reshape(clients, examples)),
        engine=run,
    )


def step_flops(problem: Problem) -> float:
    """Floating-point operations of one training step of a client, by XLA's count for the CPU.

    Other back ends count nothing (GPU) or what their own rewriting left.
    """
    task, batch = problem.task, problem.config.batch_size
    method = methods.build(problem.config, task)
    inputs = problem.inputs["tokens"][0]
    batch = {
        "inputs": jax.ShapeDtypeStruct((batch, *inputs.shape[1:]), inputs.dtype),
        "labels": jax.ShapeDtypeStruct((batch,), jnp.int32),
        "weights": jax.ShapeDtypeStruct((batch,), jnp.float32),
    }
    received = method.start(method.init(), Cohort(0, 1, np.arange(1)))
    shapes = jax.eval_shape(lambda *x: x, method.frozen, received)
    state = jax.eval_shape(method.client.init, *shapes, ())
    key = jax.eval_shape(lambda: jax.random.key(0))
    with devices.host():
        lowered = jax.jit(method.client.step).lower(*shapes, state, batch, key)
    return lowered.cost_analysis()["flops"]


def matmul_rate(dtype: str = "float32") -> float:
    """Floating-point operations a second of a large jax matrix product on one device: the best of five."""
    n = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((n, n), dtype)
    product = jax.jit(lambda a: a @ a)
    return 2 * n**3 / best_of(5, lambda: jax.block_until_ready(product(a)))


def best_of(times: int, function) -> float:
    """Seconds of the fastest of some calls, after one that compiles; of that one, if it is the only one."""
    started = time.perf_counter()
    function()
    seconds = [] if times else [time.perf_counter() - started]
    for _ in range(times):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def report(rows: list[dict], path: Path | None) -> None:
    """Print the rows as a table, and write them with the machine's description."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [names] + [[_cell(row.get(name)) for name in names] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(names))]
    for row in cells:
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)))
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


def machine() -> dict:
    """What the numbers were measured on."""
    return {
        "device": jax.devices()[0].device_kind,
        "devices": jax.device_count(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "load": os.getloadavg()[0],
    }


def _cell(value) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
