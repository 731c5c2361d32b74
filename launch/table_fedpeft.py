"""FedPEFT's tables: data set × clients per round (of 64) × distribution × what is tuned, at 32 or 8 bits.

python launch/table_fedpeft.py --seeds=3 --out=runs/table_fedpeft  # options: runner.py
python launch/table_fedpeft.py --match='cifar100/clients8/dirichlet1/' --seeds=3

ViT-B/16 (ImageNet-21k) on CIFAR-100, RESISC45 and PatchCamelyon, 10 local epochs (arXiv 2210.01708); full
fine-tuning and DeltaMask on the same clients. Every axis crosses every other, but for the budgets (both
ways, all clients), which are asked at 8 clients per round and Dirichlet 1.
"""

import itertools

import runner

DATA = {"cifar100": "tfds:cifar100", "resisc45": "tfds:resisc45", "patch_camelyon": "tfds:patch_camelyon"}
CLIENTS = (8, 16, 32, 64)
ALPHAS = (0.1, 1, 1000)
MEGABYTES = (50, 500)
KINDS = ("head", "bias", "adapter", "prompt", "lora", "fedsb", "unilora")

TUNED = {
    **{kind: {"method": "peft", "peft.kind": kind} for kind in KINDS},
    **{f"{kind}-8bit": {"method": "peft", "peft.kind": kind, "peft.wire": "8bit"} for kind in KINDS},
    "full": {"method": "fedavg", "fedavg.trained": "backbone"},
    "deltamask": {"method": "deltamask", "head.init": "lp"},  # masks never move the head
}


def runs(smoke: bool) -> list[runner.Run]:
    if smoke:
        return [
            runner.Run(
                f"clients{m}/dirichlet{alpha}/{name}",
                "",
                TUNED[name] | {"participation": m / 4, "partition.alpha": float(alpha)},
            )
            for m, alpha in itertools.product((2, 4), (ALPHAS[0], ALPHAS[-1]))
            for name in ("head", "lora-8bit", "deltamask")
        ]
    cells = [
        (f"clients{m}/dirichlet{alpha}", {"m": m, "alpha": alpha})
        for m, alpha in itertools.product(CLIENTS, ALPHAS)
    ]
    cells += [(f"budget{megabytes}MB", {"megabytes": megabytes}) for megabytes in MEGABYTES]
    return [
        runner.Run(
            f"{data}/{cell}/{name}",
            f"configs/fedpeft.py:dataset={source},"
            + ",".join(f"{option}={value}" for option, value in options.items()),
            changes,
        )
        for (data, source), (cell, options) in itertools.product(DATA.items(), cells)
        for name, changes in TUNED.items()
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
