"""ConvMixer-768/32 (timm, ImageNet-1k) with the paper's settings: last five blocks masked.

    python -m deltamask_jax.main --config=configs/convmixer_768_32.py --workdir=runs/convmixer_768_32
    python -m deltamask_jax.main --config=configs/convmixer_768_32.py:dataset=tfds:cifar100,alpha=0.1,rho=0.2
    python -m deltamask_jax.main --config=configs/convmixer_768_32.py:smoke    # real size, random weights

d = 3,137,280 masked weights. Written for one GPU or TPU host; the data set must be prepared (docs/data.md).
Not yet run to the end with its published weights: no accuracy of ours to expect.
"""

from configs import vit_b16


def get_config(options: str = ""):
    config = vit_b16.get_config(options)
    config.model.name = "convmixer_768_32"
    if config.model.checkpoint:  # a smoke run keeps its random weights
        config.model.checkpoint = "hf:timm/convmixer_768_32.in1k"
        config.model.revision = ""  # not pinned: its main branch
    return config
