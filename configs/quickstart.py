"""The embedded default: a small ViT pretrained on glyphs learns handwritten digits through masks.

    python -m deltamask_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

30 clients share 1,437 8×8 digits (Dirichlet 10). No download.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.rounds = 30
    config.local_epochs = 2
    config.batch_size = 16
    return config
