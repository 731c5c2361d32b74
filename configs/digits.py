"""The smoke: a small ViT pretrained on glyphs learns scikit-learn's handwritten digits through masks.

    python -m deltamask_jax.main --config=configs/digits.py --workdir=runs/digits

30 clients share 1,437 8×8 digits (Dirichlet 10), 360 are the test; about four minutes on two CPU cores. A
linear head has 97 % here, and masks half a point more (docs/results.md): configs/quickstart.py shows more.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.rounds = 16
    config.local_epochs = 2  # a client has about 48 examples: six steps per round
    config.batch_size = 16
    # One round at the default 0.01 gives a head whose confidence is right; from a steeper one (0.1), a few
    # wrong examples dominate every gradient. The probe itself, which has all rounds, is best at 0.1.
    config.linear_probe.learning_rate = 0.1
    config.fedavg.learning_rate, config.peft.learning_rate = 1e-3, 1e-2  # best of three (docs/results.md)
    config.mask.uniforms = "per_client"
    config.mask.aggregator = "control_variate"
    # Large steps at first, to get anywhere in a hundred; small ones at the end, to settle.
    config.mask.learning_rate = 0.6
    config.mask.learning_rate_final = 0.03
    return config
