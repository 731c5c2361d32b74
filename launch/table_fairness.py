"""Whom each method serves badly: accuracy on each client's own share of the test, strongly non-IID.

python launch/table_fairness.py --seeds=3 --out=runs/table_fairness  # options: runner.py
python launch/table_fairness.py --seeds=3 --match='quickstart/.*/(linear_probe|fedavg|bias|deltamask|held)$'

Dirichlet 0.1 and pathological splits (two classes per client) of the quick start and of Fashion-MNIST under
DINOv2 ViT-S/14. The table has the mean over the worst tenth of clients, Jain's index, the tenth that holds
the fewest examples, and test examples of classes that their client has few of: beside the accuracy over all,
they say whether masks leave small clients and rare classes further behind than weights do.

The quick start's rates were best on validation images of the Dirichlet 0.1 split (docs/results.md), and
FedPM's on those of Dirichlet 10. FedMask, KLMS and SignSGD were not searched: they have the config's. With
`held` a weight's votes wait until they amount to two.
"""

import itertools
from typing import Any

import runner

BASES = {
    "quickstart": "configs/quickstart.py",
    "vit_s14": "configs/dinov2_small.py:dataset=tfds:fashion_mnist",
}
SPLITS = {
    "dirichlet0.1": {"partition.alpha": 0.1},
    "pathological": {"partition.name": "pathological"},
}
TRAINED: dict[str, dict[str, Any]] = {
    **{name: {"method": name} for name in runner.METHODS if name != "peft"},
    "bias": {"method": "peft", "peft.scope": "suffix", "peft.wire": "8bit"},
    "fedsb": {"method": "peft", "peft.kind": "fedsb", "peft.scope": "suffix", "peft.wire": "8bit"},
    "held": runner.HELD,
}
AVERAGED = ("fedavg", "eden", "drive", "qsgd")
RATES: dict[str, dict[str, float]] = {
    "linear_probe": {"linear_probe.learning_rate": 0.011},
    **{name: {"fedavg.learning_rate": 1e-3, "fedavg.decay": 0.1} for name in AVERAGED},
    **{name: {"mask.learning_rate": 0.3} for name in ("deltamask", "deepreduce", "held")},
    "fedpm": {"mask.learning_rate": 0.6},
    "bias": {"peft.learning_rate": 1e-2, "peft.decay": 0.1},
    "fedsb": {"peft.learning_rate": 9e-2, "peft.decay": 0.1},
}

SMOKE = {"partition.classes_per_client": 3}  # four clients of two could not hold ten classes


def runs(smoke: bool) -> list[runner.Run]:
    listed = []
    for (base, config), (split, changes) in itertools.product(BASES.items(), SPLITS.items()):
        for name, trained in TRAINED.items():
            if smoke and (base != "quickstart" or name not in ("fedavg", "deltamask")):
                continue
            rates = RATES.get(name, {}) if base == "quickstart" else {}
            changed = trained | changes | rates | {"per_client_evaluation": True} | (SMOKE if smoke else {})
            listed.append(runner.Run(f"{base}/{split}/{name}", config, changed))
    return listed


if __name__ == "__main__":
    runner.main(__doc__, runs)
