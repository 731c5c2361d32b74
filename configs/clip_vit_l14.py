"""CLIP ViT-L/14 with the paper's settings: 768-d image embeddings, last five blocks masked.

    python -m deltamask_jax.main --config=configs/clip_vit_l14.py --workdir=runs/clip_vit_l14
    python -m deltamask_jax.main --config=configs/clip_vit_l14.py:dataset=tfds:cifar100,alpha=0.1,rho=0.2
    python -m deltamask_jax.main --config=configs/clip_vit_l14.py:smoke    # real size, random weights

d = 62,914,560 masked weights. Written for one GPU or TPU host; the data set must be prepared (docs/data.md).
Not yet run to the end with its published weights: no accuracy of ours to expect.
"""

from configs import vit_b16


def get_config(options: str = ""):
    config = vit_b16.get_config(options)
    config.model.name = "clip_vit_l14"
    if config.model.checkpoint:  # a smoke run keeps its random weights
        config.model.checkpoint = "hf:openai/clip-vit-large-patch14"
        config.model.revision = "32bd64288804d66eefd0ccbe215aa642df71cc41"
    return config
