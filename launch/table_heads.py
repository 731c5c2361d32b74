"""How the head starts: random (He), discriminant (FiT), class means (FedCOF), one round of probing (LP).

python launch/table_heads.py --seeds=3 --out=runs/table_heads  # options: runner.py

CLIP ViT-B/32 on CIFAR-10 and CIFAR-100, near-IID and non-IID.
"""

import runner


def runs(smoke: bool) -> list[runner.Run]:
    return [
        runner.Run(
            f"{data}-dir{alpha}/{head}",
            f"configs/clip_vit_b32.py:dataset=tfds:{data},alpha={alpha}",
            {"head.init": head},
        )
        for data in (("cifar10", "cifar100") if not smoke else ("digits",))
        for alpha in ((10, 0.1) if not smoke else (10,))
        for head in ("he", "fit", "fedcof", "lp")
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
