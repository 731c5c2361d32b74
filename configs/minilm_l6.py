r"""MiniLM-L6, a sentence encoder of 22.7 M parameters: texts, within reach of two CPU cores.

    python -m deltamask_jax.main --config=configs/minilm_l6.py --config.data=csv:reviews.csv
    python -m deltamask_jax.main --config=configs/minilm_l6.py:dataset=hf:dair-ai/emotion,alpha=0.1

d = 5,308,416 masked weights, those of the last three blocks. Texts have up to 64 tokens; features are the
mean of a text's tokens. Elsewhere-trained weights: --config.model.checkpoint=DIR, with its tokenizer.json.
"""

from configs import common
from deltamask_jax.config import parse_options


def get_config(options: str = ""):
    chosen = parse_options(options, {"dataset": "hf:dair-ai/emotion", "alpha": 10.0})
    config = common.get_config()
    config.model.name = "minilm_l6"
    config.model.checkpoint = "hf:sentence-transformers/all-MiniLM-L6-v2"
    config.model.max_length = 64
    config.model.trained_blocks = 3
    config.data = chosen["dataset"]
    config.partition.alpha = chosen["alpha"]
    config.clients = 20
    config.rounds = 20
    config.batch_size = 16
    config.mask.uniforms = "per_client"
    config.mask.aggregator = "control_variate"
    config.mask.kappa = config.mask.kappa_final = 1.0
    config.mask.learning_rate, config.mask.learning_rate_final = 0.2, 0.03
    config.mask.evaluate = "mean"
    config.codec.name = "side_info"
    return config
