"""What a network of ten billion parameters takes on each of several devices, by the compiler's analysis.

    python -m benchmarks.memory --shards=1,2,4,8 --json benchmarks/results/memory-10b.json

The network is a ViT of 32 blocks, 5,120 channels wide, at 28 pixels (5 tokens per image), of which the last
block is masked; `weight_shards` divides it. The devices are pretended ones of this machine's CPU. Nothing is
allocated but the server's own θ and votes (d = 314,572,800), and nothing is run: the rows are what XLA's CPU
back end plans, and another back end plans otherwise.
"""

import argparse
from pathlib import Path

import jax

from benchmarks import workload
from benchmarks.compile_for import Chip, programs, row
from configs import common
from deltamask_jax import devices, models
from deltamask_jax.models.vit import ViTConfig

WIDE = ViTConfig("vit", width=5120, depth=32, heads=40, mlp=20480, patch=14, image_size=28)
SHOWN = ("training chunk", "prefix")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shards", default="1,2,4,8", help="devices that share one copy of the weights")
    parser.add_argument("--json", type=Path, help="write the rows here")
    options = parser.parse_args()
    shards = [int(count) for count in options.shards.split(",")]
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", max(shards))
    models.PRESETS["wide"] = WIDE
    config = common.get_config()
    config.model.name, config.model.checkpoint, config.model.trained_blocks = "wide", "", 1
    config.clients, config.batch_size = 1, 16
    mask = config.mask
    mask.uniforms, mask.aggregator = "per_client", "control_variate"
    rows = []
    for count in shards:
        mesh = devices.mesh(count, jax.devices()[:count])
        for name, program, steps in programs(config, mesh, 1, 32, 2.0**40):
            if name in SHOWN:
                found, _ = row(name, program, steps, Chip(1.0, 1.0, 1.0))
                kept = ("program", "GiB per chip", "of these temporary", "collectives", "compiled in, s")
                rows.append({"devices": count, **{key: found[key] for key in kept}})
                print(rows[-1], flush=True)
            if name == SHOWN[0]:
                break
    workload.report(rows, options.json)


if __name__ == "__main__":
    main()
