"""The attack table of benchmarks/faults.py: accuracy against the share of hostile clients, by defence."""

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # config files import `configs.common`

from configs import quickstart  # noqa: E402
from deltamask_jax import methods  # noqa: E402
from deltamask_jax.evaluation import evaluator  # noqa: E402
from deltamask_jax.heads import with_head  # noqa: E402
from deltamask_jax.problem import set_up  # noqa: E402
from deltamask_jax.rounds import play_until_enough  # noqa: E402

AGGREGATORS = ("mean", "trimmed", "median", "clip")
SHARES = (0.0, 0.1, 0.2, 0.4)


def attack_config(rounds: int, **changes):
    """The quick start with 20 clients and one epoch a round; the cap is off unless it is what is shown."""
    config = quickstart.get_config()
    config.update_from_flattened_dict(
        {
            "rounds": rounds,
            "clients": 20,
            "train_examples": 400,
            "local_epochs": 1,
            "model.trained_blocks": 3,
            "robust.max_flip_rate": 0.0,
        }
        | changes
    )
    return config


def attack_table(rounds: int, scratch: Path) -> list[dict]:
    """Final accuracy for each attack, share of attackers and defence."""
    problem, _ = with_head(set_up(attack_config(rounds), scratch))
    rows = []

    def measure(attack: str, share: float, defence: str, **changes) -> None:
        config = attack_config(rounds, **{"attack.kind": attack, "attack.share": share} | changes)
        its_problem = dataclasses.replace(problem, config=config)
        method = methods.build(config, problem.task)
        accuracy_of, state = evaluator(its_problem, method), method.init()
        rejected = 0
        for number in range(1, rounds + 1):
            state, result = play_until_enough(its_problem, method, state, number)
            rejected += sum(result.rejected.values())
        row = {"attack": attack, "share": share, "defence": defence}
        row |= {
            "accuracy": accuracy_of(state),
            "rejected": rejected,
            "flip_rate": result.details["flip_rate"],
        }
        rows.append(row)
        print(
            "{attack:12} {share:4.0%}  {defence:12} {accuracy:6.1%}  rejected {rejected}".format(**row),
            flush=True,
        )

    for aggregator in AGGREGATORS:
        measure("none", 0.0, aggregator, **{"robust.aggregator": aggregator})
    for share in SHARES[1:]:
        measure("corrupt", share, "mean")
        for attack in ("random_flip", "all_flip"):
            for aggregator in AGGREGATORS:
                measure(attack, share, aggregator, **{"robust.aggregator": aggregator})
            measure(attack, share, "mean + cap", **{"robust.max_flip_rate": 0.2})
    return rows


def plot(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    attacks = ("corrupt", "random_flip", "all_flip")
    figure, panels = plt.subplots(1, len(attacks), figsize=(12, 4), sharey=True, layout="constrained")
    honest = {row["defence"]: row["accuracy"] for row in rows if row["attack"] == "none"}
    for axes, attack in zip(panels, attacks, strict=True):
        mine = [row for row in rows if row["attack"] == attack]
        for defence in dict.fromkeys(row["defence"] for row in mine):
            line = [(0.0, honest[defence.split(" ")[0]])]
            line += [(row["share"], row["accuracy"]) for row in mine if row["defence"] == defence]
            axes.plot([100 * x for x, _ in line], [100 * y for _, y in line], marker="o", label=defence)
        axes.set(title=attack, xlabel="hostile clients (%)")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    panels[0].set(ylabel="test accuracy (%)")
    figure.savefig(file, dpi=110)
    print(f"wrote {file}")
