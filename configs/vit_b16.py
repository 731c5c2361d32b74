"""ViT-B/16 (ImageNet-21k) with the paper's settings: 30 clients, 100 rounds, the last five blocks masked.

    python -m deltamask_jax.main --config=configs/vit_b16.py --workdir=runs/vit_b16
    python -m deltamask_jax.main --config=configs/vit_b16.py:dataset=tfds:cifar100,alpha=0.1,rho=0.2
    python -m deltamask_jax.main --config=configs/vit_b16.py:smoke    # real size, random weights

d = 35,389,440 masked weights. Written for one GPU or TPU host; the data set must be prepared (docs/data.md).
"""

from configs import common
from deltamask_jax.config import parse_options


def get_config(options: str = ""):
    chosen = parse_options(options, {"dataset": "tfds:cifar10", "alpha": 10.0, "rho": 1.0, "smoke": False})
    config = common.get_config()
    config.model.name = "vit_b16"
    config.model.checkpoint = "hf:google/vit-base-patch16-224-in21k"
    config.model.revision = "b4569560a39a0f1af58e3ddaf17facf20ab919b0"
    config.model.dtype = "bfloat16"
    config.data = chosen["dataset"]
    config.partition.alpha = chosen["alpha"]
    config.participation = chosen["rho"]
    config.rounds = 100 if chosen["rho"] == 1 else 300
    if chosen["smoke"]:
        config.model.checkpoint = ""  # random weights: the graph and the bytes are real, the accuracy is not
        config.data = "digits"
        config.train_examples, config.test_examples = 40, 20
        config.clients = config.rounds = 2
        config.batch_size = 10
        config.head.epochs = 1
    return config
