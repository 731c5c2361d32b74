"""Accuracy and bits per parameter of all methods and data sets: near-IID, all clients in each round.

python launch/table_iid.py --seeds=3 --out=runs/table_iid  # options: runner.py

CLIP ViT-B/32, Dirichlet 10, ρ = 1, 100 rounds. Data must be prepared (docs/data.md); one GPU or TPU host.
"""

import runner


def runs(smoke: bool) -> list[runner.Run]:
    return [
        runner.Run(
            f"{data}/{method}",
            f"configs/clip_vit_b32.py:dataset=tfds:{data},alpha=10,rho=1",
            {"method": method},
        )
        for data in (runner.DATA_SETS if not smoke else ("digits",))
        for method in runner.METHODS
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
