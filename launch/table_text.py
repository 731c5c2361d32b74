"""Texts: tweets and product reviews × every kind of training, on MiniLM-L6 among 20 clients.

python launch/icwsm.py vaderSentiment-3.3.2.tar.gz texts       # once: the data (docs/text.md)
python launch/table_text.py --seeds=3 --out=runs/table_text    # options: runner.py
python launch/table_text.py --match='tweets/(deltamask|lora)'

The last block is trained for five rounds, on texts of 32 tokens. Rates, constant or decaying to a tenth, are
those that were best on 400 tweets held out (docs/text.md); the reviews take them as they are. With `held` a
weight's votes wait until they amount to two (docs/concepts.md).
"""

import itertools
from typing import Any

import runner

SETS = ("tweets", "reviews")
SMALL = {"method": "peft", "peft.scope": "suffix", "peft.wire": "8bit"}
TUNED: dict[str, dict[str, Any]] = {
    "linear_probe": {"method": "linear_probe", "linear_probe.learning_rate": 0.03},
    "fedcof": {"method": "fedcof", "rounds": 1},
    **{
        kind: SMALL | {"peft.kind": kind, "peft.learning_rate": rate, "peft.decay": decay}
        for kind, rate, decay in (
            ("bias", 9e-3, 0.1),
            ("adapter", 9e-3, 0.1),
            ("prompt", 1e-3, 1.0),
            ("fedsb", 3e-3, 1.0),
            ("lora", 9e-3, 1.0),
        )
    },
    "fedavg": {"method": "fedavg", "fedavg.learning_rate": 2.7e-3},
    "deltamask": {"method": "deltamask", "mask.learning_rate": 0.6},
    "held": runner.HELD | {"mask.learning_rate": 0.6},
}
SHORT = {"rounds": 5, "model.trained_blocks": 1, "model.max_length": 32}


def runs(smoke: bool) -> list[runner.Run]:
    short = {} if smoke else SHORT
    return [
        runner.Run(f"{texts}/{name}", f"configs/minilm_l6.py:dataset=csv:texts/{texts}.csv", short | changes)
        for texts, (name, changes) in itertools.product(SETS, TUNED.items())
    ]


if __name__ == "__main__":
    runner.main(__doc__, runs)
