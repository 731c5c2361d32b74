"""DINOv2 ViT-B/14 with the paper's settings: cls token, last five blocks masked.

    python -m deltamask_jax.main --config=configs/dinov2_base.py --workdir=runs/dinov2_base
    python -m deltamask_jax.main --config=configs/dinov2_base.py:dataset=tfds:cifar100,alpha=0.1,rho=0.2
    python -m deltamask_jax.main --config=configs/dinov2_base.py:smoke    # real size, random weights

d = 35,389,440 masked weights. Written for one GPU or TPU host; the data set must be prepared (docs/data.md).
Not yet run to the end with its published weights: no accuracy of ours to expect.
"""

from configs import vit_b16


def get_config(options: str = ""):
    config = vit_b16.get_config(options)
    config.model.name = "dinov2_base"
    if config.model.checkpoint:  # a smoke run keeps its random weights
        config.model.checkpoint = "hf:facebook/dinov2-base"
        config.model.revision = "f9e44c814b77203eaa57a6bdbbd535f21ede1415"
    return config
