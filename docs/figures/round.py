"""Draws docs/round.png: what travels in a round.

python docs/figures/round.py
"""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

SERVER, CLIENT, WIRE = "#e8eefc", "#eaf6ea", "#b3541e"


def box(axes, x, y, width, height, title, text, colour):
    axes.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.06", facecolor=colour, edgecolor="#445")
    )
    axes.text(x + width / 2, y + height - 0.08, title, ha="center", va="top", weight="bold", fontsize=10.5)
    axes.text(x + width / 2, y + height - 0.48, text, ha="center", va="top", fontsize=9, linespacing=1.45)


def arrow(axes, start, end, text, at, **options):
    style = {"arrowstyle": "-|>", "mutation_scale": 16, "linewidth": 2, "color": WIRE} | options
    axes.add_patch(FancyArrowPatch(start, end, **style))
    axes.text(*at, text, ha="center", va="center", fontsize=9, color=style["color"], linespacing=1.4)


def draw() -> Figure:
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(0, 12), ylim=(0, 6.4))
    axes.axis("off")
    box(
        axes, 0.2, 3.9, 3.4, 2.1, "Server, before",
        "θ_g: u16[d], the probability\nof keeping each weight\n\nm_g = [u < θ_g]", SERVER,
    )  # fmt: skip
    box(
        axes, 8.3, 3.9, 3.5, 2.1, "Client k, training",
        "logits from θ_g; each step samples\nm ~ Bernoulli(θ), runs m ⊙ w,\nstraight-through gradient\n→ θ_k",
        CLIENT,
    )  # fmt: skip
    box(
        axes, 8.3, 0.4, 3.5, 2.4, "Client k, encoding",
        "m_k = [u < θ_k], the same u\nflips Δ = where m_k ≠ m_g\n"
        "Δ′ = top κ of Δ by KL(θ_k ‖ θ_g)\nΔ′ → filter → image", CLIENT,
    )  # fmt: skip
    box(
        axes, 0.2, 0.4, 3.4, 2.4, "Server, merging",
        "query all d positions;\nm̂_k = m_g flipped at each hit\n\n"
        "θ_g from all m̂_k: Beta posterior,\nor control variate", SERVER,
    )  # fmt: skip
    arrow(
        axes,
        (3.75, 5.0),
        (8.15, 5.0),
        "DOWN: how θ_g has changed since\n(the news), or θ_g itself",
        (5.95, 5.5),
    )
    arrow(
        axes,
        (8.15, 1.6),
        (3.75, 1.6),
        "UP: 32-byte envelope + body\na fraction of a bit per weight",
        (5.95, 1.05),
    )
    arrow(axes, (10.05, 3.8), (10.05, 2.95), "", (0, 0), color="#445", linewidth=1.3)
    arrow(axes, (1.9, 2.95), (1.9, 3.8), "", (0, 0), color="#445", linewidth=1.3)
    axes.text(2.05, 3.37, "next round", fontsize=9, color="#445", va="center")
    axes.text(
        5.95, 3.35,
        "never travel: the data, the weights w (frozen, public),\n"
        "the uniforms u (both ends hash seed, round, client, position)",
        ha="center", va="center", fontsize=9, style="italic", color="#445", linespacing=1.5,
    )  # fmt: skip
    return figure


if __name__ == "__main__":
    draw().savefig(Path(__file__).parents[1] / "round.png", dpi=130)
