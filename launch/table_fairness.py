"""Whom each method serves badly: accuracy on each client's own share of the test, strongly non-IID.

python launch/table_fairness.py --seeds=3 --out=runs/table_fairness  # options: runner.py
python launch/table_fairness.py --match='quickstart/dirichlet0.1/' --seeds=3

Dirichlet 0.1 and pathological splits (two classes per client) of the quick start and of Fashion-MNIST under
DINOv2 ViT-S/14. The table has the mean over the worst tenth of clients, Jain's index, the tenth that holds
the fewest examples, and test examples of classes that their client has few of: beside the accuracy over all,
they say whether masks leave small clients and rare classes further behind than weights do.
"""

import itertools

import runner

BASES = {
    "quickstart": "configs/quickstart.py",
    "vit_s14": "configs/dinov2_small.py:dataset=tfds:fashion_mnist",
}
SPLITS = {
    "dirichlet0.1": {"partition.alpha": 0.1},
    "pathological": {"partition.name": "pathological"},
}

SMOKE = {"partition.classes_per_client": 3}  # four clients of two could not hold ten classes


def runs(smoke: bool) -> list[runner.Run]:
    return [
        runner.Run(
            f"{base}/{split}/{method}",
            config,
            {
                "method": method,
                "per_client_evaluation": True,
                **changes,
                **(SMOKE if smoke else {}),
            },
        )
        for (base, config), (split, changes) in itertools.product(BASES.items(), SPLITS.items())
        for method in (("fedavg", "deltamask") if smoke else runner.METHODS)
        if base == "quickstart" or not smoke
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
