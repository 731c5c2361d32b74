"""Accuracy and bits per parameter of all methods and data sets: non-IID, a fifth of the clients per round.

python launch/table_noniid.py --seeds=3 --out=runs/table_noniid  # options: runner.py

CLIP ViT-B/32, Dirichlet 0.1, ρ = 0.2, 300 rounds. Data must be prepared (docs/data.md); one GPU or TPU host.
"""

import runner


def runs(smoke: bool) -> list[runner.Run]:
    split = (
        {"partition.alpha": 0.1, "participation": 0.5} if smoke else {}
    )  # half of the smoke's four clients
    return [
        runner.Run(
            f"{data}/{method}",
            f"configs/clip_vit_b32.py:dataset=tfds:{data},alpha=0.1,rho=0.2",
            {"method": method, **split},
        )
        for data in (runner.DATA_SETS if not smoke else ("digits",))
        for method in runner.METHODS
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
