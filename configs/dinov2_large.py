"""DINOv2 ViT-L/14 with the paper's settings: cls token, last five blocks masked.

    python -m deltamask_jax.main --config=configs/dinov2_large.py --workdir=runs/dinov2_large
    python -m deltamask_jax.main --config=configs/dinov2_large.py:dataset=tfds:cifar100,alpha=0.1,rho=0.2
    python -m deltamask_jax.main --config=configs/dinov2_large.py:smoke    # real size, random weights

d = 62,914,560 masked weights. Written for one GPU or TPU host; the data set must be prepared (docs/data.md).
Not yet run to the end with its published weights: no accuracy of ours to expect.
"""

from configs import vit_b16


def get_config(options: str = ""):
    config = vit_b16.get_config(options)
    config.model.name = "dinov2_large"
    if config.model.checkpoint:  # a smoke run keeps its random weights
        config.model.checkpoint = "hf:facebook/dinov2-large"
        config.model.revision = "47b73eefe95e8d44ec3623f8890bd894b6ea2d6c"
    return config
