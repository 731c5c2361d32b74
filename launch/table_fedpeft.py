"""FedPEFT's tables: what is tuned × clients a round (of 64) × data distribution × byte budget.

python launch/table_fedpeft.py --seeds=3 --out=runs/table_fedpeft  # options: runner.py

ViT-B/16 (ImageNet-21k) on CIFAR-100, 10 local epochs (arXiv 2210.01708); full fine-tuning and
DeltaMask on the same clients. One axis changes at a time around 8 clients a round, Dirichlet 1, no budget.
Budgets count both ways.
"""

import runner

KINDS = ("head", "bias", "adapter", "prompt", "lora", "fedsb", "unilora")
AXES = {
    **{f"clients{m}": {"m": m} for m in (8, 16, 32, 64)},
    **{f"dirichlet{alpha}": {"alpha": alpha} for alpha in (0.1, 1000)},
    **{f"budget{megabytes}MB": {"megabytes": megabytes} for megabytes in (50, 500)},
}
SMOKE_AXES = {"clients2": {"participation": 0.5}, "clients4": {"participation": 1.0}}


def runs(smoke: bool) -> list[runner.Run]:
    tuned = {kind: {"method": "peft", "peft.kind": kind} for kind in KINDS}
    tuned["full"] = {"method": "fedavg", "fedavg.trained": "backbone"}
    tuned["deltamask"] = {"method": "deltamask", "head.init": "lp"}  # masks never move the head
    if smoke:
        chosen = ("head", "bias", "deltamask")
        return [
            runner.Run(f"{axis}/{name}", "", tuned[name] | changes)
            for axis, changes in SMOKE_AXES.items()
            for name in chosen
        ]
    return [
        runner.Run(
            f"{axis}/{name}",
            "configs/fedpeft.py:" + ",".join(f"{option}={value}" for option, value in options.items()),
            changes,
        )
        for axis, options in AXES.items()
        for name, changes in tuned.items()
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
