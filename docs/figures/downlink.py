"""Draws docs/downlink.png: what a client is sent before it trains.

python docs/figures/downlink.py
"""

import runpy
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__)
_round = runpy.run_path(str(HERE.with_name("round.py")))
arrow, box, CLIENT, SERVER, WIRE = (_round[name] for name in ("arrow", "box", "CLIENT", "SERVER", "WIRE"))
QUIET = "#667"


def draw() -> Figure:
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 12), ylim=(0, 6.4))
    axes.axis("off")
    box(
        axes, 0.2, 2.0, 3.5, 4.1, "Server",
        "state after rounds 0, 1, 2, …\n\nnews of every round: the cohort's\nids, and its votes as a\n"
        "TALLY (their sum) or a\nRELAY (the payloads)\n\nwhich state each client holds", SERVER,
    )  # fmt: skip
    box(
        axes, 8.3, 4.6, 3.5, 1.5, "was here in the last round",
        "state + votes → merge → state,\nbit for bit the server's", CLIENT,
    )  # fmt: skip
    box(axes, 8.3, 2.5, 3.5, 1.5, "was away for five rounds", "merges five times", CLIENT)
    box(
        axes, 8.3, 0.4, 3.5, 1.5, "never answered, or keeps nothing",
        "takes the state as it is", CLIENT,
    )  # fmt: skip
    arrow(axes, (3.85, 5.3), (8.15, 5.3), "the news of one round", (6.0, 5.6))
    arrow(
        axes,
        (3.85, 3.9),
        (8.15, 3.25),
        "the news of five rounds,\nor a snapshot if that is smaller",
        (6.0, 4.25),
    )
    arrow(axes, (3.85, 2.4), (8.15, 1.15), "a snapshot of θ_g", (6.0, 2.35))
    axes.text(
        0.2, 0.9,
        "Before round 1 nothing is sent: the state follows\nfrom the config, the checkpoint and the head.",
        fontsize=9, color=QUIET, va="center",
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    draw().savefig(HERE.parents[1] / "downlink.png", dpi=130)
