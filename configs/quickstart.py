"""The embedded default: a small ViT pretrained on letters learns to tell clothes apart through masks.

    python -m deltamask_jax.main --config=configs/quickstart.py --workdir=runs/quickstart

10 clients share 2,000 images of Fashion-MNIST (Dirichlet 10); 1,000 others are the test. The package carries
them, as it does the network: no download. Three CPU minutes; docs/results.md has the accuracies to expect.
Settings were chosen on validation images (launch/embed_fashion.py); docs/results.md says what was not.
"""

from configs import common


def get_config():
    config = common.get_config()
    config.data = "fashion"
    config.clients = 10
    config.rounds = 12
    config.batch_size = 16  # a client has about 200 examples: thirteen steps per round
    config.eval_every = 2
    config.model.image_size = 16  # 17 tokens instead of 65: masks lose nothing by it
    config.head.init = "fit"  # the best head of one round here
    config.linear_probe.learning_rate = 0.01  # of 0.001 … 0.1 the best on 500 images held out
    config.fedavg.learning_rate, config.peft.learning_rate = 1e-3, 3e-2  # likewise (docs/results.md)
    config.mask.uniforms = "per_client"
    config.mask.aggregator = "control_variate"
    # Large steps at first, to get anywhere in 150; small ones at the end, to settle.
    config.mask.learning_rate = 0.3
    config.mask.learning_rate_final = 0.03
    config.mask.kappa = config.mask.kappa_final = 1.0  # all flips travel
    config.mask.evaluate = "mean"
    config.codec.name = "side_info"
    return config
