"""Compiles what a run dispatches for accelerators that are not here: TPU topologies, or a GPU.

    pip install 'deltamask_jax[aot]'
    python -m benchmarks.compile_for --target=tpu:v5e:2x2 --config=configs/vit_b16.py
    python -m benchmarks.compile_for --target=tpu:v6e:2x2 --model=dinov2_large --chunk=2 --json FILE
    python -m benchmarks.compile_for --target=gpu:h200     # needs 'deltamask_jax[cuda12]', but no GPU

Nothing is run. A row per program has

    its memory on each chip, and the share of the chip's
    operations and bytes moved, as the compiler counts them (TPU alone)
    the seconds of its cost model, and the share of the chip's peak that they would mean (TPU alone)
    collectives by kind

and the costliest operations of a training step follow, alone and summed over the blocks: by estimated cycles
for a TPU, by the size of their output for a GPU. For a TPU a product of two large matrices is compiled too:
the step's operations per estimated cycle as a share of the product's tell how near it comes to what the
compiler holds possible. All of it is the compiler's opinion, not a measurement. Programs with loops have no
seconds, so a step is compiled by itself too.
"""

import argparse
import collections
import dataclasses
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from benchmarks import workload
from deltamask_jax import config_files, devices, methods, models
from deltamask_jax.evaluation import EVALUATION_CHUNK
from deltamask_jax.federation import batches, cohort
from deltamask_jax.federation.engine import Engine
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.methods.votes import global_ones, mask_streams, stacked
from deltamask_jax.task import Cohort, Task

CLASSES = 100
MOST = 12  # rows of a table of operations
PRODUCT = 4096  # sides of the matrices that a step is held against
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u16": 2, "s16": 2, "pred": 1, "u8": 1, "s8": 1}


@dataclasses.dataclass(frozen=True)
class Chip:
    """What a vendor's data sheet says of a chip.

    Attributes:
        flops: bfloat16 operations per second.
        bandwidth: of its memory, bytes per second.
        memory: bytes.
    """

    flops: float
    bandwidth: float
    memory: float


CHIPS = {
    "v5e": Chip(197e12, 819e9, 16 * 2**30),
    "v5p": Chip(459e12, 2765e9, 95 * 2**30),
    "v6e": Chip(918e12, 1640e9, 32 * 2**30),
    "h100": Chip(989e12, 3350e9, 80e9),
    "h200": Chip(989e12, 4800e9, 141e9),
}
TPU_TYPES = {"v5e": ("v5litepod", 1), "v5p": ("v5p", 2), "v6e": ("v6e", 1)}  # name, cores per chip
GPU_CONFIG = """
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: {memory:.0f} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: 9 }} registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 10 }}
"""


def chips_of(target: str) -> tuple[Chip, list[jax.Device]]:
    """The chip and the devices of 'tpu:v5e:2x2' or 'gpu:h200', none of which is here.

    Raises:
        SystemExit: unknown target, or its compiler is not installed.
    """
    platform, _, rest = target.partition(":")
    name, _, topology = rest.partition(":")
    if name not in CHIPS or (platform == "tpu") != (name in TPU_TYPES):
        raise SystemExit(f"--target={target}: not like tpu:v5e:2x2 or gpu:h200; known: {', '.join(CHIPS)}")
    chip = CHIPS[name]
    try:
        if platform == "gpu":
            os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
            # Tiles of Triton's products are found by timing them, for which there is no card.
            os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_enable_triton_gemm=false"
            described = topologies.get_topology_desc(
                "", "cuda", topology="1x1x1", target_config=GPU_CONFIG.format_map(vars(chip))
            )
        else:
            kind, cores = TPU_TYPES[name]
            sides = [int(side) for side in (topology or "1x1").split("x")]
            os.environ |= {
                "TPU_SKIP_MDS_QUERY": "1",
                "TPU_ACCELERATOR_TYPE": f"{kind}-{cores * int(np.prod(sides))}",
                "TPU_WORKER_HOSTNAMES": "localhost",
            }
            one_host = {"chips_per_host_bounds": tuple([*sides, 1][:3])} if np.prod(sides) < 4 else {}
            described = topologies.get_topology_desc(f"{name}:{topology or '1x1'}", "tpu", **one_host)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        extra = "cuda12" if platform == "gpu" else "aot"
        raise SystemExit(
            f"no compiler for {target}: pip install 'deltamask_jax[{extra}]' ({error})"
        ) from None
    return chip, list(described.devices)


def shaped(tree: Any, place: Callable[[tuple[int, ...]], NamedSharding]) -> Any:
    """A pytree of arrays as shapes, each where `place` says by its shape."""

    def shape_of(x):
        dtype = x.dtype if hasattr(x, "dtype") else jnp.asarray(x).dtype
        return jax.ShapeDtypeStruct(np.shape(x), dtype, sharding=place(np.shape(x)))

    return jax.tree.map(shape_of, tree)


def lowered(jitted: Callable, *shapes: Any) -> Any:
    """A jitted function for the devices that its shapes lie on."""
    return jitted.lower(*shapes)


def programs(
    config: Any, mesh: Mesh, chunk: int, examples: int, memory: float
) -> Iterator[tuple[str, Any, float]]:
    """Name, lowered program, and clients × steps in it.

    Args:
        chunk: clients per chip.
        examples: per client. All lie on every chip if they take at most half of `memory`, bytes.
    """
    model = models.build(config.model)
    params = jax.eval_shape(model.init, jax.random.key(0))
    head = {"kernel": jnp.zeros((model.feature_dim, CLASSES)), "bias": jnp.zeros(CLASSES)}
    method = methods.build(config, Task(model, params, head, FlatIndex.create(params, model.masked)))
    lanes, one = mesh.shape[devices.CLIENTS], devices.mesh(devices=list(mesh.devices.flat[:1]))

    def spread(tree, mesh=mesh):
        shards = mesh.shape[devices.WEIGHTS]
        return shaped(tree, lambda shape: NamedSharding(mesh, devices.weight_spec(shape, shards)))

    def divided(tree, mesh=mesh):
        return shaped(tree, lambda shape: NamedSharding(mesh, PartitionSpec(devices.CLIENTS)))

    size = model.image_size
    images = np.broadcast_to(np.float32(0), (EVALUATION_CHUNK * lanes, size, size, 3))
    dtype = jnp.dtype(config.model.dtype)
    prefix = jax.jit(lambda params, images: model.prefix(params, images).astype(dtype))
    yield "prefix", lowered(prefix, spread(params), divided(images)), 0
    tokens = jax.eval_shape(prefix, params, images)

    clients = chunk * lanes
    asked = Cohort(config.seed, 1, np.arange(clients))
    state = method.init()
    received, private = method.start(state, asked), method.private(state, asked)
    steps = batches.num_steps(examples, config.local_epochs, config.batch_size)
    plan = np.broadcast_to(np.int32(0), (clients, steps, config.batch_size))
    count = np.ones(clients, np.int32)

    def rows(*leading):
        inputs = jax.ShapeDtypeStruct((*leading, *tokens.shape[1:]), dtype)
        return {"inputs": inputs, "labels": jax.ShapeDtypeStruct(leading, jnp.int32)}

    total = config.clients * examples
    whole = total * int(np.prod(tokens.shape[1:])) * dtype.itemsize <= memory / 2
    shared = shaped(rows(total), lambda shape: NamedSharding(mesh, PartitionSpec())) if whole else {}
    own = {} if whole else divided(rows(clients, examples))
    train_chunk = Engine(mesh).compiled(cohort._train_chunk, method.client, mesh)
    yield (
        "training chunk",
        lowered(
            train_chunk,
            spread(method.frozen),
            spread(received),
            shared,
            own,
            *divided((count, plan, private, asked.keys())),
        ),
        clients * steps,
    )

    def of_clients(function: Callable) -> Any:
        """A client's `function` of frozen, received and its own, over the clients of a chip."""
        over_clients = jax.vmap if chunk > 1 else cohort._alone

        def mapped(frozen, received, *mine):
            return over_clients(lambda *mine: function(frozen, received, *mine))(*mine)

        return jax.jit(mapped)

    def per_client(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct((chunk, *x.shape), x.dtype), tree)

    alike = spread(method.frozen, one), spread(received, one)
    state = per_client(jax.eval_shape(method.client.init, method.frozen, alike[1], ()))
    weights = jax.ShapeDtypeStruct((chunk, config.batch_size), jnp.float32)
    batch = {**rows(chunk, config.batch_size), "weights": weights}
    mine = divided((state, batch, asked.keys()[:chunk]), one)
    yield "one step", lowered(of_clients(method.client.step), *alike, *mine), chunk

    mine = divided((state, jax.tree.map(lambda x: x[:chunk], private)), one)
    yield "flips, top κ", lowered(of_clients(method.client.final), *alike, *mine), 0

    predict = jax.jit(
        lambda params, head, x: jnp.argmax(model.suffix(params, x) @ head["kernel"] + head["bias"], axis=-1)
    )
    inputs = divided(jax.ShapeDtypeStruct((EVALUATION_CHUNK * lanes, *tokens.shape[1:]), dtype))
    yield "evaluation", lowered(predict, spread(params), spread(head), inputs), 0

    keys = stacked(mask_streams(Cohort(config.seed, 1, np.arange(config.clients))))
    yield "Σ m_g", lowered(global_ones, spread(received["theta"], one), spread(keys, one)), 0


def row(name: str, program: Any, client_steps: float, chip: Chip) -> tuple[dict, str]:
    """What the compiler says of a program, and its text."""
    started = time.perf_counter()
    compiled = program.compile()
    seconds, text = time.perf_counter() - started, compiled.as_text()
    used, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    held = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes
    loops = " while(" in text
    flops, moved, opinion = (cost.get(key) for key in ("flops", "bytes accessed", "optimal_seconds"))
    found = collections.Counter(re.findall(rf" ({'|'.join(COLLECTIVES)})(?:-start)?\(", text))
    opinion = None if loops or not opinion or opinion < 0 else opinion
    return {
        "program": name,
        "client steps": client_steps or None,
        "GiB per chip": held / 2**30,
        "of the chip's": held / chip.memory,
        "of these temporary": used.temp_size_in_bytes / 2**30,
        "TFLOP": flops / 1e12 if flops and flops > 0 else None,
        "GB moved": moved / 1e9 if moved and moved > 0 else None,
        "its seconds": opinion,
        "share of peak": flops / opinion / chip.flops if opinion and flops else None,
        "collectives": ", ".join(f"{count} {kind}" for kind, count in found.items()) or "none",
        "compiled in, s": seconds,
    }, text


def operations(text: str) -> list[dict]:
    """A program's operations, the costliest first: by estimated cycles, or, where the compiler names none, by
    bytes of output."""
    found = []
    for line in text.splitlines():
        match = re.match(
            r"\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) (fusion|custom-call|copy|convolution|dot|reduce)\(",
            line,
        )
        if match is None:
            continue
        cycles = re.search(r'"estimated_cycles":"(\d+)"', line)
        source = re.search(r'op_name="([^"]*)"', line)
        size = sum(
            BYTES[kind] * int(np.prod([int(n) for n in sides.split(",") if n] or [1]))
            for kind, sides in re.findall(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]", match[2])
        )
        found.append(
            {
                "operation": match[1],
                "cycles": int(cycles[1]) if cycles else None,
                "MB of output": size / 1e6,
                "shape": match[2][:40],
                "from": source[1] if source else "",
            }
        )
    total = sum(each["cycles"] or 0 for each in found)
    found.sort(key=lambda each: -(each["cycles"] or 0) if total else -each["MB of output"])
    return [{**each, "share": each["cycles"] / total if each["cycles"] else None} for each in found]


def by_source(found: list[dict]) -> list[dict]:
    """Operations summed by the line of the network they come from, whichever block, and the way they run."""
    groups: dict[tuple[str, str], list[dict]] = {}
    for each in found:
        way = "backward" if "transpose(" in each["from"] else "forward"
        module = re.sub(r"transpose\(|jvp\(|vmap\(|jit\(|\)", "", each["from"])
        module = re.sub(r"(?<=[a-z])_\d+\b", "", module.split("run_blocks/")[-1])
        groups.setdefault((module[-60:] or "no name", way), []).append(each)
    rows = [
        {
            "from": module,
            "way": way,
            "operations": len(its),
            "cycles": sum(each["cycles"] or 0 for each in its) or None,
            "share": sum(each["share"] or 0 for each in its) or None,
            "MB of output": sum(each["MB of output"] for each in its),
        }
        for (module, way), its in groups.items()
    ]
    return sorted(rows, key=lambda row: (-(row["cycles"] or 0), -row["MB of output"]))


def of_a_product(step: dict, cycles: int, device: jax.Device) -> float:
    """Operations per estimated cycle of a step, as a share of those of a product of two matrices."""
    side = jax.ShapeDtypeStruct((PRODUCT, PRODUCT), jnp.bfloat16, sharding=SingleDeviceSharding(device))
    product = lowered(jax.jit(jnp.matmul), side, side).compile().as_text()
    whole = sum(each["cycles"] or 0 for each in operations(product))
    return step["TFLOP"] * 1e12 / cycles / (2 * PRODUCT**3 / whole)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--target", default="tpu:v5e:2x2", help="tpu:KIND:TOPOLOGY or gpu:KIND")
    parser.add_argument("--config", default="configs/vit_b16.py", help="a config file")
    parser.add_argument("--model", help="another network than the config's")
    parser.add_argument("--chunk", type=int, default=1, help="clients per chip")
    parser.add_argument("--examples", type=int, default=1667, help="per client: CIFAR-100's among 30")
    parser.add_argument("--only", action="append", help="this program; may be repeated")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    chip, found = chips_of(options.target)
    config = config_files.load(options.config)
    config.model.name, config.model.checkpoint = options.model or config.model.name, ""
    config.model.dtype = "bfloat16"
    mesh, rows, step, of_step = devices.mesh(config.cohort.weight_shards, found), [], [], {}
    for name, program, client_steps in programs(config, mesh, options.chunk, options.examples, chip.memory):
        if name not in (options.only or [name]):
            continue
        new, text = row(name, program, client_steps, chip)
        print(f"{name}: compiled in {new['compiled in, s']:.0f} s", flush=True)
        rows.append(new)
        if name == "one step":
            step, of_step = operations(text), new
    print(
        f"\n{config.model.name} on {options.target}, {len(found)} chip(s), {options.chunk} client(s) per chip"
    )
    workload.report(rows, None)
    cycles, groups = sum(each["cycles"] or 0 for each in step), by_source(step)
    share = of_a_product(of_step, cycles, found[0]) if cycles else None
    for what, table in {"operations": step, "parts": groups}.items() if step else ():
        print(f"\nthe costliest {what} of one step, by the compiler's estimate")
        workload.report([{**each, "from": each["from"][-60:]} for each in table[:MOST]], None)
    if share:
        print(f"\none step: {cycles:,.0f} estimated cycles, {share:.0%} of a product's operations per cycle")
    if options.json:
        about = {
            "target": options.target,
            "model": config.model.name,
            "chunk": options.chunk,
            "jax": jax.__version__,
            "cycles of one step": cycles or None,
            "share of a product's operations per cycle": share,
        }
        options.json.parent.mkdir(parents=True, exist_ok=True)
        tables = {"rows": rows, "one step": step[:MOST], "its parts": groups[:MOST]}
        options.json.write_text(json.dumps(about | tables, indent=1) + "\n")


if __name__ == "__main__":
    main()
