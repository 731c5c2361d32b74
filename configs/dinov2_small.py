r"""DINOv2 ViT-S/14: the smallest foundation model here, within reach of two CPU cores at 84 pixels.

    python -m deltamask_jax.main --config=configs/dinov2_small.py --workdir=runs/dinov2_small \
        --config.data=idx:/usr/share/datasets/fashion-mnist --config.train_examples=2000 \
        --config.test_examples=1000 --config.clients=10 --config.rounds=20
    python -m deltamask_jax.main --config=configs/dinov2_small.py:dataset=tfds:eurosat,alpha=0.1
    python -m deltamask_jax.main --config=configs/dinov2_small.py:smoke    # random weights

d = 8,847,360 masked weights. Images are 84 × 84 (6 × 6 patches); --config.model.image_size=224 is what the
network was trained on. Elsewhere-trained weights: --config.model.checkpoint=FILE.safetensors.
"""

from configs import vit_b16


def get_config(options: str = ""):
    config = vit_b16.get_config(options)
    config.model.name = "dinov2_small"
    config.model.image_size = 84
    config.model.dtype = "float32"  # bfloat16 is no faster on CPU
    if config.model.checkpoint:  # a smoke run keeps its random weights
        config.model.checkpoint = "hf:facebook/dinov2-small"
        config.model.revision = "ed25f3a31f01632728cabb09d1542f84ab7b0056"
    return config
