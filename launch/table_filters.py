"""Bits per entry and filter type: what a filter around the flips costs, and what its false flips do.

python launch/table_filters.py --seeds=3 --out=runs/table_filters  # options: runner.py

CLIP ViT-B/32 on CIFAR-100, Dirichlet 10, ρ = 1; the exact codecs stand beside the filters.
"""

import runner

FILTERS = {
    **{f"bfuse{bits}": {"codec.name": "bfuse", "codec.bits": bits} for bits in (8, 16, 32)},
    **{f"xor{bits}": {"codec.name": "xor", "codec.bits": bits} for bits in (8, 16)},
    "bfuse8-4wise": {"codec.name": "bfuse", "codec.arity": 4},
    **{f"bloom-2^-{bits}": {"codec.name": "bloom", "codec.fpr": 2.0**-bits} for bits in (8, 16)},
    "rice": {"codec.name": "rice"},
    "side_info": {"codec.name": "side_info"},
}


def runs(smoke: bool) -> list[runner.Run]:
    return [
        runner.Run(name, "configs/clip_vit_b32.py:dataset=tfds:cifar100", changes)
        for name, changes in FILTERS.items()
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
