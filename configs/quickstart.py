"""The embedded default: a small ViT pretrained on glyphs learns handwritten digits through masks.

    python -m deltamask_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

30 clients share 1,437 8×8 digits (Dirichlet 10), 360 are the test. No download; about four minutes on two CPU
cores. The README has the accuracies to expect.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.rounds = 16
    config.batch_size = 8
    config.cohort.chunk = 6
    config.head.learning_rate = 0.1
    config.mask.uniforms = "per_client"
    config.mask.aggregator = "control_variate"
    # A client has about 48 examples, six steps a round: they must be large at first to get anywhere.
    config.mask.learning_rate = 0.6
    config.mask.learning_rate_final = 0.05
    return config
