"""Record what one DeltaMask round's codec sees: θ_g and every client's θ_k, for `benchmarks/codecs.py`.

    python benchmarks/record_theta.py --config=configs/digits.py --round=10 --out=/tmp/digits.npz

Writes theta_g u16[d], theta_k u16[clients, d], seed, round, and whether the cohort shares its uniforms.
"""

import dataclasses
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags
from tqdm import tqdm

from deltamask_jax import masks, methods
from deltamask_jax.data import partition
from deltamask_jax.federation.rounds import play_round
from deltamask_jax.heads import with_head
from deltamask_jax.methods.method import Link
from deltamask_jax.setup import set_up
from deltamask_jax.task import Cohort

sys.path.insert(0, str(Path(__file__).parents[1]))  # config files import `configs.common`
_CONFIG = config_flags.DEFINE_config_file("config", "configs/digits.py", lock_config=True)
_ROUND = flags.DEFINE_integer("round", 10, "Round to record.", lower_bound=1)
_CLIENTS = flags.DEFINE_integer("keep", 0, "Clients to keep; 0 = all of the cohort.", lower_bound=0)
_OUT = flags.DEFINE_string("out", None, "The .npz file to write.", required=True)


def recording(method, index, kept: list):
    """`method`, whose clients also hand over θ_k; it is appended to `kept` and does not travel."""

    def final(frozen, received, carry, private):
        theta = masks.theta16(jax.nn.sigmoid(index.ravel(carry[0])))
        return method.client.final(frozen, received, carry, private), theta

    def encode(state, updates, cohort):
        kept.extend(theta for _, theta in updates)
        return method.up.encode(state, [packed for packed, _ in updates], cohort)

    return dataclasses.replace(
        method,
        client=dataclasses.replace(method.client, final=final),
        up=Link(encode, method.up.decode),
        report=lambda updates, votes: method.report(updates[0], votes),
        diagnose=lambda state, updates: method.diagnose(state, updates[0]),
    )


def main(_):
    config = _CONFIG.value
    config.method = "deltamask"
    with tempfile.TemporaryDirectory() as workdir:
        problem, _ = with_head(set_up(config, Path(workdir)))
    method, kept = methods.build(config, problem.task), []
    state = method.init()
    for number in tqdm(range(1, _ROUND.value + 1), unit="round"):
        clients = partition.cohort(config.clients, config.participation, config.seed, number)
        if number == _ROUND.value:
            theta_g, method = state.theta, recording(method, problem.task.index, kept)
        state, result = play_round(problem, method, state, Cohort(config.seed, number, clients))
    np.savez_compressed(
        _OUT.value,
        theta_g=theta_g,
        theta_k=np.stack(kept[: _CLIENTS.value or None]),
        seed=config.seed,
        round=_ROUND.value,
        clients=clients[: _CLIENTS.value or None],
        shared=config.mask.uniforms == "shared",
    )
    flips = result.details["flip_rate"]
    print(f"{_OUT.value}: {len(clients)} clients, d = {len(theta_g):,}, {flips:.2%} of the weights flipped")


if __name__ == "__main__":
    app.run(main)
