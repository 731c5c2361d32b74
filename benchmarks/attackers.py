"""The attack table of benchmarks/faults.py: accuracy under lying clients, by defence."""

import dataclasses
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # config files import `configs.common`

from configs import digits  # noqa: E402
from deltamask_jax import methods  # noqa: E402
from deltamask_jax.evaluation import evaluator  # noqa: E402
from deltamask_jax.federation.rounds import play_until_enough  # noqa: E402
from deltamask_jax.heads import with_head  # noqa: E402
from deltamask_jax.setup import set_up  # noqa: E402

UNBOUND = {"robust.max_flip_rate": 0.5, "robust.aggregator": "mean"}  # what a payload of coin tosses passes
DEFENCES = {
    "none": UNBOUND,
    "cap (default)": {},
    "cap and clip": {"robust.aggregator": "clip"},
    "trimmed mean": UNBOUND | {"robust.aggregator": "trimmed"},
    "median": UNBOUND | {"robust.aggregator": "median"},
}
ATTACKS = {
    "corrupt": {"attack.kind": "corrupt"},
    "all_flip": {"attack.kind": "all_flip"},
    "random_flip": {"attack.kind": "random_flip", "attack.flip_rate": 0.3},
    "collude, 2 % of the weights": {"attack.kind": "collude", "attack.flip_rate": 0.02},
    "collude, 10 %": {"attack.kind": "collude", "attack.flip_rate": 0.1},
    "collude_near, 10 %": {"attack.kind": "collude_near", "attack.flip_rate": 0.1},
}
UNIFORMS = {  # the paper's, and configs/digits.py's
    "shared": {"mask.uniforms": "shared", "mask.aggregator": "beta"},
    "per client": {"mask.uniforms": "per_client", "mask.aggregator": "control_variate"},
}
UNIFORMS |= {f"{name}, Dirichlet(0.1)": its | {"partition.alpha": 0.1} for name, its in UNIFORMS.items()}


def attack_config(rounds: int, **changes):
    """The digits with 20 clients and one epoch per round."""
    config = digits.get_config()
    config.update_from_flattened_dict(
        {
            "rounds": rounds,
            "clients": 20,
            "train_examples": 400,
            "local_epochs": 1,
            "model.trained_blocks": 3,
        }
        | changes
    )
    return config


def runs() -> list[tuple[str, str, float, str]]:
    """(uniforms, attack, share, defence) of every run of a seed."""
    shown, colluding = list(DEFENCES)[:3], [attack for attack in ATTACKS if "collude" in attack]
    table = [(uniforms, "none", 0.0, defence) for uniforms in UNIFORMS for defence in DEFENCES]
    table += [
        (uniforms, attack, 0.2, defence)
        for uniforms in ("shared", "per client")
        for attack in colluding
        for defence in (DEFENCES if uniforms == "shared" else shown)
    ]
    table += [("shared", attack, 0.2, defence) for attack in ("all_flip", "random_flip") for defence in shown]
    table += [("shared", attack, 0.4, defence) for attack in colluding[:2] for defence in shown]
    return [*table, ("shared", "corrupt", 0.2, "none")]


def attack_table(rounds: int, seeds: int, rows: list[dict], keep: Callable[[list[dict]], None]) -> None:
    """Final accuracy for each attack, share of attackers and defence; `rows` has an earlier start's."""
    done = {tuple(row[key] for key in ("seed", "uniforms", "attack", "share", "defence")) for row in rows}
    for seed in range(seeds):
        problems = {}  # by split
        jax.clear_caches()  # every method's programs stay in memory otherwise, until no more can be mapped
        for uniforms, attack, share, defence in runs():
            if (seed, uniforms, attack, share, defence) in done:
                continue
            changes = ATTACKS.get(attack, {}) | DEFENCES[defence] | {"attack.share": share, "seed": seed}
            config = attack_config(rounds, **changes | UNIFORMS[uniforms])
            alpha = config.partition.alpha
            if alpha not in problems:
                honest = attack_config(rounds, **{"seed": seed, "partition.alpha": alpha})
                with tempfile.TemporaryDirectory() as scratch:
                    problems[alpha], _ = with_head(set_up(honest, Path(scratch)))
            its_problem = dataclasses.replace(problems[alpha], config=config)
            method = methods.build(config, its_problem.task)
            accuracy_of, state = evaluator(its_problem, method), method.init()
            rejected = 0
            for number in range(1, rounds + 1):
                state, result = play_until_enough(its_problem, method, state, number)
                rejected += sum(result.rejected.values())
            row = {"seed": seed, "uniforms": uniforms, "attack": attack, "share": share, "defence": defence}
            row |= {
                "accuracy": accuracy_of(state),
                "rejected": rejected,
                "flip_rate": result.details["flip_rate"],
            }
            rows.append(row)
            keep(rows)
            print(
                "{seed} {uniforms:27} {attack:28} {share:4.0%}  {defence:27} {accuracy:6.1%}  "
                "rejected {rejected}".format(**row),
                flush=True,
            )


def markdown(rows: list[dict]) -> str:
    """The table of docs/reliability.md: mean accuracy over seeds, and their sample standard deviation."""
    lines = ["| u | attack | share | " + " | ".join(DEFENCES) + " |", "|---" * (3 + len(DEFENCES)) + "|"]
    for uniforms, attack, share in dict.fromkeys(run[:3] for run in runs()):
        cells = []
        for defence in DEFENCES:
            key = (uniforms, attack, share, defence)
            accuracies = [
                100 * row["accuracy"]
                for row in rows
                if (row["uniforms"], row["attack"], row["share"], row["defence"]) == key
            ]
            spread = f" ± {np.std(accuracies, ddof=1):.1f}" if len(accuracies) > 1 else ""
            cells.append(f"{np.mean(accuracies):.1f}{spread}" if accuracies else "")
        lines.append(f"| {uniforms} | {attack} | {share:.0%} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(rows: list[dict], file: Path) -> None:
    """Accuracy with 20 % hostile clients, by attack and defence; the bars' ends are seeds' extremes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    shown = [name for name in ("none", *ATTACKS) if name != "corrupt"]
    seeds = len({row["seed"] for row in rows})
    title = f"a fifth of the clients lies, shared u; mean and extremes of {seeds} seed{'s' * (seeds > 1)}"
    figure, axes = plt.subplots(figsize=(11, 4.6), layout="constrained")
    for place, defence in enumerate(DEFENCES):
        at, middle, low, high = [], [], [], []
        for column, attack in enumerate(shown):
            found = [
                100 * row["accuracy"]
                for row in rows
                if row["uniforms"] == "shared"
                and (row["attack"], row["defence"]) == (attack, defence)
                and row["share"] in (0.0, 0.2)
            ]
            if found:
                at.append(column + (place - len(DEFENCES) / 2 + 0.5) / (len(DEFENCES) + 2))
                middle.append(np.mean(found))
                low.append(np.mean(found) - min(found))
                high.append(max(found) - np.mean(found))
        axes.errorbar(at, middle, (low, high), fmt="o", capsize=3, label=defence)
    axes.set_xticks(
        range(len(shown)), [name if name != "none" else "nobody lies" for name in shown], fontsize=8
    )
    axes.set(ylabel="test accuracy (%)", title=title)
    axes.grid(alpha=0.3, axis="y")
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=110)
    print(f"wrote {file}")
