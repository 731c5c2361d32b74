"""Accuracy against ε of differential privacy: FedPEFT's third axis, ε × what is trained, at both levels.

python launch/table_dp.py --seeds=3 --out=runs/table_dp  # options: runner.py; needs the [dp] extra
python launch/table_dp.py --match='quickstart/example/.*/(head|bias|fedsb|deltamask)$' --seeds=3

The quick start's network and images, ten clients of about 200 images each; and FedPEFT's ViT-B/16 on
CIFAR-100 with 64 clients, of whom 8 take part (by Poisson sampling where a client is protected). `none` is
the same run without noise. δ is 1e-5 for examples and 1e-3 for clients, which is below one over 64. Of the
quick start, examples alone are protected: ten clients would need noise that drowns everything.

Rates of the quick start were searched on validation images, at ε = 5 and without noise (docs/privacy.md);
those of LoRA and of the kernels were not. Nor were any on CIFAR-100: they are the config's.
"""

import itertools
from typing import Any

import runner

EPSILONS = (1.0, 5.0, 10.0, None)
KINDS = ("head", "bias", "lora", "fedsb")

TRAINED: dict[str, dict[str, Any]] = {
    **{kind: {"method": "peft", "peft.kind": kind} for kind in KINDS},
    "kernels": {"method": "fedavg"},
    "deltamask": {"method": "deltamask"},
}
HEAD = {
    "peft": "he",
    "fedavg": "he",
}  # masks never move the head: one private round of probing trains it first
BASES: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("quickstart", "example"): ("configs/quickstart.py", {"dp.delta": 1e-5, "peft.scope": "suffix"}),
    ("cifar100", "example"): ("configs/fedpeft.py", {"dp.delta": 1e-5}),
    ("cifar100", "client"): ("configs/fedpeft.py", {"dp.delta": 1e-3, "client_sampling": "poisson"}),
}
# Of the quick start, with noise and without.
RATES: dict[bool, dict[str, dict[str, float]]] = {
    True: {
        **{kind: {"peft.learning_rate": 0.09, "peft.decay": 0.1} for kind in ("head", "bias", "fedsb")},
        "deltamask": {"mask.learning_rate": 0.3, "head.learning_rate": 0.03},
    },
    False: {
        "head": {"peft.learning_rate": 0.03, "peft.decay": 0.1},
        **{kind: {"peft.learning_rate": 0.09, "peft.decay": 0.1} for kind in ("bias", "fedsb")},
        "deltamask": {"mask.learning_rate": 0.3},
    },
}
SMOKE = {"peft.scope": "suffix", "client_sampling": "poisson", "participation": 0.5}


def runs(smoke: bool) -> list[runner.Run]:
    listed = []
    for ((data, level), (config, base)), epsilon in itertools.product(BASES.items(), EPSILONS):
        if smoke and (data == "quickstart" or epsilon not in (5.0, None)):
            continue
        for name, trained in TRAINED.items():
            if (level == "client" and name == "deltamask") or (smoke and name not in ("head", "deltamask")):
                continue
            private = {} if epsilon is None else {"dp.level": level, "dp.epsilon": epsilon}
            rates = RATES[epsilon is not None].get(name, {}) if data == "quickstart" else {}
            head = {"head.init": HEAD.get(trained["method"], "lp")}
            changes = base | trained | private | head | rates
            listed.append(
                runner.Run(
                    f"{data}/{level}/epsilon-{epsilon or 'none'}/{name}",
                    config,
                    changes | SMOKE if smoke else changes,
                )
            )
    return listed


if __name__ == "__main__":
    runner.main(__doc__, runs)
