"""Every setting of a run with its default and unit. Other configs start from here and change a few lines.

python -m deltamask_jax.main --config=configs/quickstart.py --config.rounds=5 --config.mask.theta_init=0.9
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # root of all randomness: split, shuffles, public uniforms, local samples
    config.method = "deltamask"  # see deltamask_jax/methods
    config.rounds = 100  # federated rounds after the head's
    config.clients = 30  # N
    config.participation = 1.0  # ρ, fraction of clients in each round, 0 < ρ ≤ 1
    config.local_epochs = 1  # E, passes over a client's examples in a round
    config.batch_size = 64  # examples
    config.eval_every = 1  # rounds between evaluations; the last round is always evaluated

    # Data: 'digits', 'idx:DIR', 'folder:DIR', 'npz:FILE', 'tfds:NAME' (docs/data.md).
    config.data = "digits"
    config.data_dir = ""  # where prepared tfds data lies; '' = its own default
    config.train_examples = 0  # use only this many, stratified by class; 0 = all
    config.test_examples = 0  # likewise

    # Outputs of the frozen prefix: 'memory', 'off' = run the prefix in every step, or a folder that keeps
    # them for later runs.
    config.prefix_cache = "memory"

    config.partition = ConfigDict()
    config.partition.name = "dirichlet"  # 'dirichlet', 'iid', 'pathological', 'users'
    config.partition.alpha = 10.0  # Dirichlet concentration: 10 ≈ IID, 0.1 = strongly non-IID
    config.partition.classes_per_client = 2  # for 'pathological'
    config.partition.min_examples = 2  # every client holds at least this many

    config.model = ConfigDict()
    config.model.name = "glyph_vit"  # see deltamask_jax/models
    config.model.checkpoint = "embedded"  # file, directory, 'hf:org/name', 'embedded', or '' = random weights
    config.model.revision = ""  # commit of a hub checkpoint; '' = its main branch
    config.model.image_size = 0  # pixels, side of the square input; 0 = the model's own
    config.model.trained_blocks = 5  # the last n blocks are masked; those before are the frozen prefix
    config.model.dtype = "float32"  # compute type of the network: 'float32' or 'bfloat16'
    config.model.masked = ""  # regular expression over parameter paths; '' = all kernels of trained blocks

    config.head = ConfigDict()
    config.head.init = "lp"  # frozen after 'lp': one linear-probing round; 'fit': LDA; 'he': random
    config.head.epochs = 20  # local epochs of that round; cheap, features are cached
    config.head.learning_rate = 0.01  # Adam

    config.mask = ConfigDict()
    config.mask.theta_init = (
        0.97  # θ before the first round, 0 … 1; near 1 keeps the pretrained network whole
    )
    config.mask.theta_clip = 0.01  # θ stays inside [clip, 1 − clip]
    config.mask.learning_rate = 0.1  # Adam on the logits; in round 1
    config.mask.learning_rate_final = (
        0.1  # and in the last round, on a cosine between; the paper's is constant
    )
    config.mask.uniforms = "shared"  # 'shared': one u for the whole cohort (paper); 'per_client'
    config.mask.kappa = 0.8  # fraction of flips that travels, the best by KL; in round 1
    config.mask.kappa_final = (
        0.8  # and in the last round, on a cosine between (the paper's end is not known to us)
    )
    config.mask.ranking = "kl"  # which flips are the best: 'kl', or 'random' (the ablation)
    config.mask.aggregator = "beta"  # 'beta': posterior reset every 1/ρ rounds (paper); 'control_variate'
    config.mask.lambda0 = 1.0  # prior α = β = λ₀
    config.mask.evaluate = "threshold"  # network evaluated: 'threshold' [θ > ½] ⊙ w, or 'mean' θ ⊙ w

    config.codec = ConfigDict()
    config.codec.name = "bfuse"  # see deltamask_jax/codecs
    config.codec.bits = 8  # per filter entry; false positives at rate 2^-bits
    config.codec.arity = 3  # slots a key of 'bfuse': 3 or 4
    config.codec.container = "png"  # around the fingerprints: 'png' (grayscale image, paper), 'zstd', 'raw'
    config.codec.fpr = 2.0**-8  # false-positive rate of 'bloom'
    config.codec.clients = (
        ConfigDict()
    )  # what differs for some: {"0-9": {"bits": 16}, "12": {"name": "rice"}}

    config.fedavg = ConfigDict()
    config.fedavg.learning_rate = 1e-4  # Adam

    config.tensorboard = False  # also write every round's numbers to workdir/tensorboard ([report] extra)
    config.wandb = ""  # Weights & Biases project to report to ([wandb] extra); '' = none

    config.cohort = ConfigDict()
    config.cohort.backend = "vmap"  # 'vmap', or 'loop' for debugging: one client, one step at a time
    config.cohort.chunk = (
        1  # clients trained at once by vmap; small networks gain from several, memory grows with it
    )

    return config
