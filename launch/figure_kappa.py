"""Which share κ of the flips travels, constant or on a cosine, ranked by KL or at random.

python launch/figure_kappa.py --seeds=3 --out=runs/figure_kappa  # options: runner.py

CLIP ViT-B/32 on CIFAR-100, Dirichlet 10, ρ = 1. docs/fidelity.md says what is known of the
paper's schedule.
"""

import runner

CONSTANT = (0.2, 0.5, 0.8, 1.0)


def runs(smoke: bool) -> list[runner.Run]:
    schedules = {f"{kappa}": (kappa, kappa) for kappa in ((0.5, 0.8) if smoke else CONSTANT)}
    schedules["0.8-cosine-0.2"] = (0.8, 0.2)
    return [
        runner.Run(
            f"{ranking}/{name}",
            "configs/clip_vit_b32.py:dataset=tfds:cifar100",
            {"mask.ranking": ranking, "mask.kappa": first, "mask.kappa_final": last},
        )
        for ranking in ("kl", "random")
        for name, (first, last) in schedules.items()
        if not (ranking == "random" and first == last == 1.0)  # all flips travel, in whatever order
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
