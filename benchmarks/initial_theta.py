"""What the initial θ costs before training, and where each choice ends.

    python benchmarks/initial_theta.py --config=configs/digits.py --config.rounds=20

A table of test accuracy, with the head already fitted: of the network θ ⊙ w, of networks with a sampled mask
(what clients start from), and of the evaluated network after `config.rounds` rounds (--notrain skips that).
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from deltamask_jax import masks, methods
from deltamask_jax.data import partition
from deltamask_jax.evaluation import evaluator
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.heads import with_head
from deltamask_jax.public_random import MASK, stream_key, uniforms
from deltamask_jax.setup import set_up
from deltamask_jax.task import Cohort

sys.path.insert(0, str(Path(__file__).parents[1]))  # config files import `configs.common`
_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py", lock_config=True)
_THETAS = flags.DEFINE_multi_float("theta", [0.5, 0.9, 0.97, 0.99], "Initial θ; may be repeated.")
_TRAIN = flags.DEFINE_bool("train", True, "Also train, and report the final accuracy.")
_SAMPLES = 5


def sampled_accuracy(problem, method, theta: float) -> list[float]:
    """Accuracy with masks drawn at probability `theta`, one a sample."""
    index, params = problem.task.index, problem.task.params
    scores = []
    for sample in range(_SAMPLES):
        u = uniforms(stream_key(sample, 0, 0, MASK), index.d, jnp)
        kernels = jax.tree.map(
            lambda w, m: w * m, index.kernels(params), index.unravel(masks.sample(jnp.float32(theta), u))
        )
        network = (index.merge(params, kernels), problem.task.head)
        drawn = dataclasses.replace(method, network=lambda state, network=network: network)
        scores.append(evaluator(problem, drawn)(None))
    return scores


def main(_):
    config = _CONFIG.value
    with tempfile.TemporaryDirectory() as workdir:
        problem, _ = with_head(set_up(config, Path(workdir)))
    print("theta   mean network   sampled network   after training")
    for theta in _THETAS.value:
        config.mask.theta_init, config.mask.evaluate = theta, "mean"
        method = methods.build(config, problem.task)
        before = evaluator(problem, method)(method.init())
        samples = sampled_accuracy(problem, method, theta)
        config.mask.evaluate = "threshold"
        method, final = methods.build(config, problem.task), "–"
        state = method.init()
        if _TRAIN.value:
            for number in tqdm(range(1, config.rounds + 1), unit="round", leave=False):
                clients = partition.cohort(config.clients, config.participation, config.seed, number)
                state, _ = play_round(problem, method, state, Cohort(config.seed, number, clients))
            final = f"{evaluator(problem, method)(state):.1%}"
        spread = f"{np.mean(samples):.1%} ± {np.std(samples):.1%}"
        print(f"{theta:5.2f}   {before:12.1%}   {spread:>15}   {final:>14}", flush=True)


if __name__ == "__main__":
    app.run(main)
