r"""DINOv2 ViT-g/14: 1.1 billion parameters, with the paper's settings; the last five of forty blocks masked.

    python -m deltamask_jax.main --config=configs/dinov2_giant.py --workdir=runs/dinov2_giant
    python -m deltamask_jax.main --config=configs/dinov2_giant.py:dataset=tfds:cifar100,alpha=0.1,rho=0.2
    python -m deltamask_jax.main --config=configs/dinov2_giant.py:smoke    # real size, random weights

d = 141,557,760 masked weights. Memory per device, by arithmetic: 4.5 GB of float32 weights; 2.8 GB for the
client that trains (20 bytes per masked weight; XLA's CPU back end plans 35); a block's activations, since
model.remat keeps no more; 0.8 MB in bfloat16 per example of the cached prefix. The smoke run took 11 minutes
and 13.1 GiB at most on two busy CPU cores (docs/performance.md). Not yet run with its published weights.
"""

from configs import vit_b16


def get_config(options: str = ""):
    config = vit_b16.get_config(options)
    config.model.name = "dinov2_giant"
    config.cohort.chunk = 1
    config.model.remat = True
    if config.model.checkpoint:
        config.model.checkpoint = "hf:facebook/dinov2-giant"
        config.model.revision = "611a9d42f2335e0f921f1e313ad3c1b7178d206d"
    else:  # a smoke run is for two CPU cores: random weights, and four patches per image
        config.model.image_size = 28
        config.model.dtype = "float32"
    return config
