"""Membership inference: what the final model, and what a client sends, say about who is in the data.

    python benchmarks/membership.py --runs 4 --json FILE  # an hour; with DP: the [dp] extra
    python benchmarks/membership.py --smoke               # a tiny problem, whether it runs

Of every client's examples a third fits the head and belongs to nobody afterwards. Half of the rest, drawn
anew for each run, is the client's: members. The other half is what they must be told from. Two attackers:

    model    has the final model. It scores an example by how much smaller its loss is than the mean loss
             under the runs in which it was no member (shadow calibration: Watson et al., arXiv 2111.08440)
    server   sees the payloads of every third round, decoded, and knows each client's candidates. It scores
             an example by the cosine of the update with the example's own step downhill, summed over rounds

AUC 0.5 and a true-positive rate of 1 % at 1 % false positives are guessing. Intervals: 95 %, Student's t over
the runs, which share a split and differ in who is a member.
"""

import argparse
import dataclasses
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

sys.path.insert(0, str(Path(__file__).parents[1]))  # config files import `configs.common`

from configs import quickstart  # noqa: E402
from deltamask_jax import devices, methods, privacy  # noqa: E402
from deltamask_jax.data import partition  # noqa: E402
from deltamask_jax.evaluation import in_chunks  # noqa: E402
from deltamask_jax.federation import clients  # noqa: E402
from deltamask_jax.federation.rounds import play_round  # noqa: E402
from deltamask_jax.heads import with_head  # noqa: E402
from deltamask_jax.methods.votes import Votes  # noqa: E402
from deltamask_jax.progress import say  # noqa: E402
from deltamask_jax.setup import set_up  # noqa: E402
from deltamask_jax.task import Cohort, Problem  # noqa: E402

METHODS = {
    "fedavg": {"method": "fedavg", "fedavg.learning_rate": 1e-3},
    "biases": {"method": "peft", "peft.kind": "bias", "peft.scope": "suffix", "peft.learning_rate": 1e-2},
    "deltamask, bfuse": {"method": "deltamask", "codec.name": "bfuse"},
    "deltamask, side_info": {"method": "deltamask", "codec.name": "side_info"},
    "klms": {"method": "klms", "mask.aggregator": "beta"},
}
SMOKE = {
    "rounds": 3,
    "clients": 3,
    "train_examples": 120,
    "test_examples": 30,
    "model.name": "tiny_vit",
    "model.checkpoint": "",  # random weights
    "model.image_size": 0,
    "model.trained_blocks": 1,
    "dp.microbatch": 8,
}
CHUNK = 32  # examples whose gradients are held at once
EVERY = 3  # rounds, of which the payloads of one are scored: an example's gradient costs as much as its step


def thirds(parts: list[np.ndarray], rng: np.random.Generator) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Each client's examples for the head, and an even number of those that may be members."""
    shuffled = [rng.permutation(part) for part in parts]
    public = [part[: len(part) // 3] for part in shuffled]
    return public, [part[len(part) // 3 :][: (len(part) - len(part) // 3) // 2 * 2] for part in shuffled]


def gradient_seen(config, task):
    """A function of (received, direction f32[n], inputs, labels, key): each example's cosine, f32[b]."""
    seen = []

    def capture(loss_and_gradient, batch, key):
        loss, gradient = loss_and_gradient(batch)
        seen.append(gradient)
        return loss, gradient

    with mock.patch.object(methods, "mechanism", lambda _: privacy.Mechanism(gradient=capture)):
        method = methods.build(config, task)

    def cosine(received, direction, x, label, key):
        example = {"inputs": x[None], "labels": label[None], "weights": jnp.ones(1)}
        carry = method.client.init(method.frozen, received, ())
        method.client.step(method.frozen, received, carry, example, key)
        return optax.losses.cosine_similarity(-ravel_pytree(seen.pop())[0], direction, epsilon=1e-12)

    return jax.jit(jax.vmap(cosine, in_axes=(None, None, 0, 0, None)))


def direction_of(method, state, payload: bytes, one: Cohort) -> np.ndarray:
    """Where a client's payload says that it went, f32[n]."""
    votes, rejected = method.up.decode(state, [payload], one)
    assert not rejected, rejected
    if not isinstance(votes, Votes):
        return np.asarray(ravel_pytree(votes[0])[0])
    theta = np.asarray(state.theta) / 65536
    change = votes.change if votes.change is not None else np.asarray(votes.ones) - theta
    return np.asarray(change, np.float32)


def losses_of(problem: Problem, method, state, rows: np.ndarray) -> np.ndarray:
    """Cross-entropy of some training examples under the evaluated network, f32[n]."""
    params, head = method.network(state)
    forward = problem.engine.compiled(problem.task.model.suffix)
    inputs, labels = np.asarray(problem.inputs["tokens"][0])[rows], np.asarray(problem.labels[0])[rows]
    features = in_chunks(lambda x: forward(params, x), inputs, problem.engine.mesh)
    logits = features @ head["kernel"] + head["bias"]
    return np.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, jnp.asarray(labels)))


def attack(
    problem: Problem, pools: list[np.ndarray], runs: int, cosines_of: Callable[..., jax.Array]
) -> list[dict[str, np.ndarray]]:
    """Train with other members in every run: `member` bool[n], `loss` f32[n] after the last round, and
    `cosine` f32[n], of all examples of the pools in their order."""
    config, (tokens, _), (labels, _) = problem.config, problem.inputs["tokens"], problem.labels
    method = methods.build(config, problem.task)
    rows, starts = np.concatenate(pools), np.cumsum([0, *map(len, pools)])
    found = []
    for run in range(runs):
        rng = np.random.default_rng([config.seed, run])
        member = [rng.permutation(len(pool)) < len(pool) // 2 for pool in pools]
        cosine = np.zeros(len(rows), np.float32)

        def watched(problem, method, state, cohort, memory, cosine=cosine):
            answers = clients.ask(problem, method, state, cohort, memory)
            if cohort.round % EVERY:
                return answers
            received = method.start(state, cohort)
            key = jax.random.key(cohort.round)  # of the attacker's own mask, which the client's is not
            for row in answers.senders:
                client = int(cohort.clients[row])
                direction = direction_of(method, state, answers.payloads[row], answers.cohort.of([row]))
                for start in range(0, len(pools[client]), CHUNK):
                    mine = pools[client][start : start + CHUNK]
                    padded = np.resize(mine, CHUNK)
                    cosines = cosines_of(received, direction, tokens[padded], labels[padded], key)
                    at = starts[client] + start
                    cosine[at : at + len(mine)] += np.asarray(cosines)[: len(mine)]
            return answers

        parts = [pool[its] for pool, its in zip(pools, member, strict=True)]
        mine, state = dataclasses.replace(problem, parts=parts, ask=watched), method.init()
        for number in range(1, config.rounds + 1):
            seed = config.seed + 1000 * run
            asked = partition.cohort(config.clients, config.participation, seed, number)
            state, _ = play_round(mine, method, state, Cohort(seed, number, asked))
        found.append(
            {
                "member": np.concatenate(member),
                "loss": losses_of(problem, method, state, rows),
                "cosine": cosine,
            }
        )
    return found


def scores(found: list[dict[str, np.ndarray]]) -> dict[str, list[tuple[float, float]]]:
    """attacker -> (AUC, true-positive rate at 1 % false positives) of each run."""
    losses, members = np.stack([run["loss"] for run in found]), np.stack([run["member"] for run in found])
    out: dict[str, list[tuple[float, float]]] = {"model": [], "server": []}
    for r, run in enumerate(found):
        shadows = np.delete(~members, r, axis=0)
        shadows |= ~shadows.any(axis=0)  # a member of all other runs: the mean over all of them
        usual = np.mean(np.delete(losses, r, axis=0), axis=0, where=shadows)
        for name, score in (("model", usual - run["loss"]), ("server", run["cosine"])):
            false, true, _ = roc_curve(run["member"], score)
            at = np.searchsorted(false, 0.01, side="right") - 1
            out[name].append((float(roc_auc_score(run["member"], score)), float(true[at])))
    return out


def interval(values: list[float]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % interval."""
    wide = stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values)), float(wide)


def config_of(changes: dict, smoke: bool):
    """The quick start with a method, and from a given head on."""
    config = quickstart.get_config()
    config.update_from_flattened_dict({**(SMOKE if smoke else {}), **changes, "head.init": "he"})
    methods.check(config)
    return config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=0, help="of each row; default: 8, with --smoke 3")
    parser.add_argument("--epsilon", type=float, default=5.0, help="ε of the rows with DP, per example")
    parser.add_argument("--match", default="", help="only methods whose name matches: a core for each half")
    parser.add_argument("--smoke", action="store_true", help="three clients, three rounds, three runs")
    parser.add_argument("--json", type=Path, help="where to write the rows")
    options = parser.parse_args()
    runs = options.runs or (3 if options.smoke else 8)
    if runs < 2:
        parser.error("--runs: at least 2, as the others calibrate each")
    devices.keep_compilations()
    if options.smoke:  # whose compiling takes longer than what is compiled
        jax.config.update("jax_disable_most_optimizations", True)
    base = config_of({}, options.smoke)
    problem = set_up(base, None)  # no workdir: nothing is drawn
    public, pools = thirds(problem.parts, np.random.default_rng(base.seed))
    fitted = config_of({}, options.smoke)
    fitted.head.init = "fit"
    head = with_head(dataclasses.replace(problem, config=fitted, parts=public))[0].task.head
    problem = dataclasses.replace(problem, task=dataclasses.replace(problem.task, head=head))
    levels = [None] + [options.epsilon] * bool(importlib.util.find_spec("dp_accounting"))
    if len(levels) == 1:
        say('rows with DP are left out, they need: pip install "deltamask_jax[dp]"')
    about = {"smoke": options.smoke, "members": sum(len(pool) // 2 for pool in pools)}
    rows, gradients = [], {}  # of each training, whatever codes what it sends
    print("| method | ε | model: AUC | TPR at 1 % FPR | server: AUC | TPR at 1 % FPR |\n" + "|---" * 6 + "|")
    for name, changes in METHODS.items():
        for epsilon in levels if re.search(options.match, name) else []:
            began = time.perf_counter()
            private = (
                {} if epsilon is None else {"dp.level": "example", "dp.epsilon": epsilon, "dp.delta": 1e-4}
            )
            config = config_of(changes | private, options.smoke)
            if private:
                config = privacy.open_account(config, np.array([len(pool) // 2 for pool in pools])).config
            if config.method not in gradients:
                gradients[config.method] = gradient_seen(config, problem.task)
            its = dataclasses.replace(problem, config=config)
            found = scores(attack(its, pools, runs, gradients[config.method]))
            row = {"method": name, "epsilon": epsilon, "noise_multiplier": config.dp.noise_multiplier}
            for attacker, pairs in found.items():
                aucs, rates = zip(*pairs, strict=True)
                row |= {f"{attacker}_auc": interval(aucs), f"{attacker}_tpr": interval(rates)}
            cells = [f"{row[key][0]:.3f} ± {row[key][1]:.3f}" for key in list(row)[3:]]
            print(f"| {name} | {epsilon or '–'} | " + " | ".join(cells) + " |", flush=True)
            rows.append(row | {"runs": runs, "seconds": time.perf_counter() - began})
            if options.json:  # after every row: all of them are an hour
                options.json.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
