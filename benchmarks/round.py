"""A DeltaMask round of a cohort: client-examples per second, share of the matmul rate, codec time exposed.

    python -m benchmarks.round --quick
    python -m benchmarks.round --json round.json
    python -m benchmarks.round --paper --json paper.json      # GPU: 30 clients × 1,667 images of ViT-B/16

'of matmul rate' is model FLOP utilisation against jax's large matrix product in the same type, measured just
before: XLA's count of one step's forward and backward pass, times the steps, over the seconds of local
training alone ('train') or of the whole round with codec and aggregation ('round').
"""

import time

import jax
import numpy as np

from benchmarks import workload
from deltamask_jax import devices, methods
from deltamask_jax.federation import batches, cohort
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.task import Cohort


def measure(model: str, clients: int, examples: int, batch: int, dtype: str, rounds: int, chunk: int) -> dict:
    problem = workload.problem(model, clients, examples, batch, dtype=dtype, chunk=chunk)
    rate, flops = workload.matmul_rate(dtype), workload.step_flops(problem)
    compilations = devices.Compilations()
    method = methods.build(problem.config, problem.task)
    everyone, state, results, seconds = np.arange(clients), method.init(), [], []
    for number in range(1, rounds + 2):  # the first compiles
        started = time.perf_counter()
        state, result = play_round(problem, method, state, Cohort(0, number, everyone))
        results.append(result)
        seconds.append(time.perf_counter() - started)
    compile_seconds = compilations.lap()
    best = 1 + int(np.argmin(seconds[1:]))
    training = train_seconds(problem, method, state, min(clients, 2 * jax.device_count()))
    steps = batches.num_steps(examples, 1, batch)
    return {
        "model": model,
        "dtype": dtype,
        "clients": clients,
        "examples": examples,
        "batch": batch,
        "d": problem.task.index.d,
        "matmul GFLOP/s": rate / 1e9,
        "train: of matmul rate": flops * steps / training / rate / jax.device_count(),
        "round: of matmul rate": flops * steps * clients / seconds[best] / rate / jax.device_count(),
        "round s": seconds[best],
        **{name.replace("_seconds", " s"): each for name, each in results[best].seconds.items()},
        "client-examples/s": clients * examples / seconds[best],
        "codec s": results[best].codec_seconds,
        "codec exposed": results[best].codec_exposed_seconds / seconds[best],
        "compile s": compile_seconds,
    }


def train_seconds(problem, method, state, clients: int, engine=None, repeats: int = 2) -> float:
    """Seconds of local training per client, without codec and server; without an engine, on the problem's.

    The fastest of `repeats` calls after one that compiles.
    """
    config, engine = problem.config, engine or problem.engine
    asked = Cohort(config.seed, 1, np.arange(clients))
    received = method.start(state, asked)
    plan = batches.schedule(problem.parts, asked, epochs=1, batch_size=config.batch_size)
    examples = {"inputs": problem.inputs["tokens"][0], "labels": problem.labels[0]}
    private, keys = method.private(state, asked), asked.keys()

    def once():
        training = cohort.train_in_chunks(
            engine,
            method.client,
            method.frozen,
            received,
            examples,
            plan,
            private,
            keys,
        )
        for _ in training:
            pass

    return workload.best_of(repeats, once) / clients


def main() -> None:
    options = workload.options(
        __doc__, paper={"action": "store_true"}, chunk={"type": int, "default": 0, "help": "0 = chosen"}
    )
    gpu = jax.default_backend() != "cpu"
    if options.paper:
        cases = [("vit_b16", 30, 1667, 64, "bfloat16", 1)]
    elif gpu:
        cases = [("vit_s14", 30, 640, 64, "bfloat16", 2), ("vit_b16", 8, 512, 64, "bfloat16", 2)]
    elif options.quick:
        cases = [("vit_s14", 2, 50, 25, "float32", 1)]
    else:
        cases = [("vit_s14", 10, 200, 25, "float32", 2), ("vit_b16", 2, 64, 32, "float32", 1)]
    rows = [measure(*case, options.chunk) for case in cases]
    workload.report(rows, options.json)
    if options.paper:
        minutes = 100 * rows[0]["round s"] / 60
        print(f"100 such rounds, without evaluation: {minutes:.1f} minutes")


if __name__ == "__main__":
    main()
