"""FedPEFT's setting (arXiv 2210.01708): ViT-B/16, 64 clients, m of them a round, 10 local epochs, 50 rounds.

    python -m deltamask_jax.main --config=configs/fedpeft.py --workdir=runs/fedpeft
    python -m deltamask_jax.main --config=configs/fedpeft.py:kind=prompt,m=32,alpha=0.1,megabytes=100
    python -m deltamask_jax.main --config=configs/fedpeft.py:smoke    # real size, random weights

The paper's axes are client stability (m), data distribution (alpha) and differential privacy (config.dp:
docs/privacy.md). A byte budget (megabytes, up and down of all clients together; 0 = none) is ours. So are the
values of m, alpha, batch and learning rate.
Every block is tuned, so no prefix is cached: written for one GPU or TPU host. Data: docs/data.md.
"""

from configs import common
from deltamask_jax.config import parse_options


def get_config(options: str = ""):
    defaults = {
        "dataset": "tfds:cifar100",
        "kind": "bias",
        "m": 8,
        "alpha": 1.0,
        "megabytes": 0,
        "smoke": False,
    }
    chosen = parse_options(options, defaults)
    config = common.get_config()
    config.method = "peft"
    config.peft.kind = chosen["kind"]
    config.model.name = "vit_b16"
    config.model.checkpoint = "hf:google/vit-base-patch16-224-in21k"
    config.model.revision = "b4569560a39a0f1af58e3ddaf17facf20ab919b0"
    config.model.dtype = "bfloat16"
    config.data = chosen["dataset"]
    config.clients = 64
    config.participation = chosen["m"] / 64
    config.partition.alpha = chosen["alpha"]
    config.local_epochs = 10
    config.rounds = 50
    config.byte_budget = 1_000_000 * chosen["megabytes"]
    config.head.init = "he"  # no linear probing first: the head is tuned with the rest
    if chosen["smoke"]:
        config.model.checkpoint = ""  # random weights: the graph and the bytes are real, the accuracy is not
        config.data = "digits"
        config.train_examples, config.test_examples = 40, 20
        config.clients = config.rounds = 2
        config.participation = 1.0
        config.local_epochs = 1
        config.batch_size = 10
    return config
