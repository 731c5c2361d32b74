"""Accuracy against bitrate across architectures: the methods with the lowest rates on five networks.

python launch/figure_architectures.py --seeds=3 --out=runs/figure_architectures  # options: runner.py

CIFAR-100, Dirichlet 10, ρ = 1. The figure is "Final accuracy against bitrate" in report.html.
Smoke: the embedded network with two and with four of its blocks trained.
"""

import runner

MODELS = ("clip_vit_b32", "clip_vit_l14", "dinov2_base", "dinov2_large", "convmixer_768_32")
METHODS = ("linear_probe", "deltamask", "fedpm", "deepreduce", "klms", "eden")


def runs(smoke: bool) -> list[runner.Run]:
    if smoke:
        return [
            runner.Run(f"glyph_vit_{n}/{method}", "", {"method": method, "model.trained_blocks": n})
            for n in (2, 4)
            for method in ("linear_probe", "deltamask")
        ]
    return [
        runner.Run(f"{model}/{method}", f"configs/{model}.py:dataset=tfds:cifar100", {"method": method})
        for model in MODELS
        for method in METHODS
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
