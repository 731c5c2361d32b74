"""The same DeltaMask round in this package and as a PyTorch program, one after the other on one machine.

    python -m benchmarks.vs_torch --quick
    python -m benchmarks.vs_torch --json vs_torch.json

Same shapes, clients, examples, batch and codec; both use every core (or the GPU). PyTorch runs client after
client (benchmarks/torch_deltamask.py), from cached prefix tokens, and once recomputing the prefix from pixels
in every step as published code does; in float32 and under bfloat16 autocast. Its last block computes every
token, this package's the cls token alone: 'honest' means the program one would write, not a crippled one.
"""

import time

import jax
import numpy as np

from benchmarks import workload
from deltamask_jax import codecs, methods
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.task import Cohort

try:
    import torch

    from benchmarks import torch_deltamask
except ImportError:
    raise SystemExit("this benchmark needs PyTorch: pip install 'deltamask_jax[parity]'") from None


def ours(model: str, clients: int, examples: int, batch: int, dtype: str, repeats: int) -> float:
    problem = workload.problem(model, clients, examples, batch, dtype=dtype, chunk=0)
    method = methods.build(problem.config, problem.task)
    state, cohort = method.init(), Cohort(problem.config.seed, 1, np.arange(clients))

    def once():
        play_round(problem, method, state, cohort)

    return workload.best_of(repeats, once)


def theirs(
    model: str, clients: int, examples: int, batch: int, *, prefix: bool, bf16: bool, repeats: int
) -> float:
    """Seconds of a round: train every client, flips, top κ, encode, decode, Beta mean."""
    device = "cuda" if torch.cuda.is_available() and jax.default_backend() == "gpu" else "cpu"
    shape = torch_deltamask.SHAPES[model]
    network = torch_deltamask.Network(shape).to(device)
    d = sum(p.numel() for p in network.logits())
    theta = torch.full((d,), 0.97, device=device)
    generator = torch.Generator(device).manual_seed(0)
    inputs_shape = (3, shape.image, shape.image) if prefix else (shape.tokens, shape.width)
    inputs = torch.randn(examples, *inputs_shape, device=device)
    labels = torch.randint(shape.classes, (examples,), device=device)
    codec = codecs.get("bfuse")

    def once():
        uniforms = torch.rand(d, generator=generator, device=device)
        mask, votes = uniforms < theta, torch.zeros(d, device=device)
        for client in range(clients):
            torch_deltamask.start(network, theta)
            theta_k = torch_deltamask.train(network, inputs, labels, batch, prefix=prefix, bf16=bf16)
            flipped = torch_deltamask.flips(theta_k, theta, uniforms, 0.8)
            context = codecs.Context(d, round=1, client=client)
            payload = codec.encode(flipped.cpu().numpy().astype(np.uint32), context)
            received = torch.from_numpy(codec.decode(payload, context).astype(np.int64)).to(device)
            own = mask.clone()
            own[received] ^= True
            votes += own
        if device == "cuda":
            torch.cuda.synchronize()
        return votes / clients

    if repeats:
        return workload.best_of(repeats, once)
    started = time.perf_counter()
    once()
    return time.perf_counter() - started


def main() -> None:
    options = workload.options(__doc__)
    gpu = jax.default_backend() == "gpu"
    if options.quick:
        model, sizes, repeats = "glyph", (2, 40, 20), 1
    elif gpu:
        model, sizes, repeats = "vit_b16", (4, 256, 64), 2
    else:
        model, sizes, repeats = "vit_s14", (10, 200, 25), 2
    total = sizes[0] * sizes[1]
    dtypes = ("float32", "bfloat16") if gpu else ("float32",)
    rows = []
    for dtype in dtypes:
        seconds = ours(model, *sizes, dtype, repeats)
        rows.append({"program": "deltamask_jax", "dtype": dtype, "prefix": "cached", "round s": seconds})
    for bf16 in (False, True):
        for prefix in (False, True):
            seconds = theirs(model, *sizes, prefix=prefix, bf16=bf16, repeats=repeats)
            row = {"program": "pytorch", "dtype": "bfloat16" if bf16 else "float32"}
            rows.append(row | {"prefix": "in every step" if prefix else "cached", "round s": seconds})
    for row in rows:
        row["client-examples/s"] = total / row["round s"]
        row["ours (float32) is faster by"] = row["round s"] / rows[0]["round s"]
    workload.report([{"model": model} | row for row in rows], options.json)


if __name__ == "__main__":
    main()
