"""What a round costs the server: decoding a cohort's payloads, and the merge; memory and seconds.

    python -m benchmarks.server --quick
    python -m benchmarks.server --json server.json

30 clients, each with its own u, send the flips of a θ_k that took a Gaussian step from θ_g: 1 % of
d = 35,389,440, the last five blocks of a ViT-B. DeltaMask decodes them and merges by the control variate,
each codec in its own process. Memory is that process's peak above what it held before, in the first call;
seconds are of the second call: elapsed, and of all cores together.
"""

import multiprocessing
import re
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks import workload
from configs import common
from deltamask_jax import methods
from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.public_random import MASK, uniforms
from deltamask_jax.task import Cohort, Task

VIT_B = 35_389_440
CODECS = ("side_info", "bfuse")


def method_of(codec: str, d: int, clients: int):
    """DeltaMask on one kernel of d weights, and a state with a θ_g like a trained one's."""
    config = common.get_config()
    config.clients, config.codec.name = clients, codec
    config.mask.uniforms, config.mask.aggregator = "per_client", "control_variate"
    method = methods.build(config, Task(None, None, None, FlatIndex(("kernel",), ((d,),), (0,), d)))
    state = method.init()
    state.theta[:] = np.random.default_rng(0).integers(655, 64_881, d, dtype=np.uint16)
    return method, state, Cohort(0, 1, np.arange(clients), examples=np.ones(clients, np.int64))


def encode(codec: str, d: int, clients: int, folder: Path) -> None:
    """Leaves every client's payload in the folder."""
    method, state, cohort = method_of(codec, d, clients)
    for client in range(clients):
        rng, alone = np.random.default_rng([1, client]), cohort.of([client])
        u = uniforms(cohort.stream(MASK, client), d)
        step = 820 * rng.standard_normal(d, np.float32)  # flips 1 %
        moved = np.clip(state.theta + step, 655, 64_881).astype(np.uint16)
        (payload,) = method.up.encode(state, [np.packbits((u < state.theta) != (u < moved))], alone)
        (folder / f"{client:04}").write_bytes(payload)


def decode(codec: str, d: int, clients: int, folder: Path) -> dict:
    """The row of a codec."""
    method, state, cohort = method_of(codec, d, clients)
    payloads = [path.read_bytes() for path in sorted(folder.iterdir())]
    row = {"codec": codec, "d": d, "clients": clients, "payloads MB": sum(map(len, payloads)) / 1e6}
    (votes, rejected), costs = measured(lambda: method.up.decode(state, payloads, cohort))
    assert not rejected
    row |= {f"decode {name}": cost for name, cost in costs.items()}
    _, costs = measured(lambda: method.merge(state, votes, cohort))
    return row | {f"merge {name}": cost for name, cost in costs.items()}


def measured(function) -> tuple:
    """The result; and memory of the first call, seconds of the second."""
    Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak counts from here
    before = resident("VmRSS")
    function()
    peak = resident("VmHWM")
    started, spent = time.perf_counter(), time.process_time()
    result = function()
    seconds, core_seconds = time.perf_counter() - started, time.process_time() - spent
    return result, {"GiB": (peak - before) / 2**30, "s": seconds, "core s": core_seconds}


def resident(name: str) -> int:
    """Bytes of this process, now or at its peak."""
    (kilobytes,) = re.findall(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(kilobytes)


def in_a_process(function, *arguments):
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    options = workload.options(__doc__)
    d, clients = (1 << 20, 5) if options.quick else (VIT_B, 30)
    rows = []
    for codec in CODECS:
        with tempfile.TemporaryDirectory() as folder:
            for part in (encode, decode):
                row = in_a_process(part, codec, d, clients, Path(folder))
            rows.append(row)
    workload.report(rows, options.json)


if __name__ == "__main__":
    main()
