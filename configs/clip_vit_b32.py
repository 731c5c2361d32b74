"""CLIP ViT-B/32 with the paper's settings: 512-d image embeddings, last five blocks masked.

    python -m deltamask_jax.main --config=configs/clip_vit_b32.py --workdir=runs/clip_vit_b32
    python -m deltamask_jax.main --config=configs/clip_vit_b32.py:dataset=tfds:cifar100,alpha=0.1,rho=0.2
    python -m deltamask_jax.main --config=configs/clip_vit_b32.py:smoke    # real size, random weights

d = 35,389,440 masked weights. Written for one GPU or TPU host; the data set must be prepared (docs/data.md).
Not yet run to the end with its published weights: no accuracy of ours to expect.
"""

from configs import vit_b16


def get_config(options: str = ""):
    config = vit_b16.get_config(options)
    config.model.name = "clip_vit_b32"
    if config.model.checkpoint:  # a smoke run keeps its random weights
        config.model.checkpoint = "hf:openai/clip-vit-base-patch32"
        # The main branch holds a pickle only; this commit is its conversion to safetensors.
        config.model.revision = "c237dc49a33fc61debc9276459120b7eac67e7ef"
    return config
