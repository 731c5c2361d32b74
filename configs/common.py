"""Every setting of a run with its default and unit. Other configs start from here and change a few lines.

python -m deltamask_jax.main --config=configs/quickstart.py --config.rounds=5 --config.mask.theta_init=0.9
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # root of all randomness, 0 … 2⁶³ − 1: split, shuffles, public uniforms, local samples
    config.method = "deltamask"  # see deltamask_jax/methods
    config.rounds = 100  # federated rounds after the head's
    config.clients = 30  # N
    config.participation = 1.0  # ρ, fraction of clients in each round, 0 < ρ ≤ 1
    config.local_epochs = 1  # E, passes over a client's examples in a round
    config.batch_size = 64  # examples
    config.eval_every = 1  # rounds between evaluations; the last round is always evaluated
    config.per_client_evaluation = False  # also the accuracy on each client's own share of the test examples
    config.byte_budget = 0  # bytes, up and down of all clients, after which no round starts; 0 = no limit
    config.resume = "auto"  # 'auto': the same command continues its run; 'fresh': moves an earlier one aside
    config.min_clients = 1  # payloads; a round that merges fewer is played again with a new cohort
    config.max_repeats = 3  # times a round is played again before the run gives up

    # Data: 'digits', 'idx:DIR', 'folder:DIR', 'npz:FILE', 'tfds:NAME' (docs/data.md).
    config.data = "digits"
    config.data_dir = ""  # where prepared tfds data lies; '' = its own default
    config.train_examples = 0  # use only this many, stratified by class; 0 = all
    config.test_examples = 0  # likewise

    # Outputs of the frozen prefix: 'memory'; 'off' = computed anew whenever a round or an evaluation
    # needs them; or a folder that keeps them for later runs.
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
    config.model.remat = False  # compute blocks again in the backward pass, to save memory (not on CPU)
    config.model.masked = ""  # regular expression over parameter paths; '' = all kernels of trained blocks

    config.head = ConfigDict()
    config.head.init = "lp"  # frozen after 'lp': one linear-probing round; 'fit': LDA; 'he': random
    config.head.epochs = 20  # local epochs of that round; cheap, features are cached
    config.head.learning_rate = 0.01  # Adam

    # The lower bracket, run beside every method for as many rounds: the head alone keeps training.
    config.linear_probe = ConfigDict()
    config.linear_probe.learning_rate = 0.01  # Adam

    config.mask = ConfigDict()
    config.mask.theta_init = 0.97  # θ before round 1, 0.001 … 0.999; near 1 keeps the pretrained network
    config.mask.theta_clip = 0.01  # θ stays inside [clip, 1 − clip]
    config.mask.learning_rate = 0.1  # Adam on the logits; in round 1
    config.mask.learning_rate_final = 0.1  # and in the last round, on a cosine between; constant in the paper
    config.mask.uniforms = "shared"  # 'shared': one u for the whole cohort (paper); 'per_client'
    config.mask.kappa = 0.8  # fraction of flips that travels, the best by KL; in round 1
    config.mask.kappa_final = 0.8  # and in the last round, on a cosine between; the paper's we do not know
    config.mask.ranking = "kl"  # which flips are the best: 'kl', or 'random' (the ablation)
    config.mask.aggregator = "beta"  # 'beta': reset every 1/ρ rounds (paper); 'running'; 'control_variate'
    config.mask.lambda0 = 1.0  # prior α = β = λ₀
    config.mask.evaluate = "threshold"  # network evaluated: 'threshold' [θ > ½] ⊙ w, or 'mean' θ ⊙ w

    config.codec = ConfigDict()
    config.codec.name = "bfuse"  # see deltamask_jax/codecs
    config.codec.bits = 8  # per filter entry; false positives at rate 2^-bits
    config.codec.arity = 3  # slots a key of 'bfuse': 3 or 4
    config.codec.container = "png"  # around the fingerprints: 'png' (grayscale image, paper), 'zstd', 'raw'
    config.codec.capacity = 0  # flips a filter has room for: one shape for all decodes faster; 0 = its own
    config.codec.window = False  # 'bfuse' also sends how far flips lie from θ_g: fewer false ones
    config.codec.fpr = 2.0**-8  # false-positive rate of 'bloom'
    config.codec.clients = ConfigDict()  # what differs: {"0-9": {"bits": 16}, "12": {"name": "rice"}}

    config.fedpm = ConfigDict()
    config.fedpm.coding = "marginal"  # of all mask bits: 'marginal' (paper), or 'given_theta' (smaller)
    config.fedpm.straight_through = "sigmoid"  # gradient: 'sigmoid', or 'times_p' (the public code's)

    config.fedmask = ConfigDict()
    config.fedmask.start = 0.35  # clients start from θ_g inside [start, 1 − start], near the threshold ½

    config.deepreduce = ConfigDict()
    config.deepreduce.policy = "P0"  # positives of the Bloom filter that are flipped: 'P0', 'P1', 'P2'

    config.klms = ConfigDict()
    config.klms.bits = 8  # per block; 2^bits candidates
    config.klms.block_kl = 2.0  # nats of KL(θ_k ‖ θ_g) per block; 2^bits must be several times exp(block_kl)

    # Training and averaging of weights: 'fedavg' and what compresses it, 'eden', 'drive', 'qsgd', 'signsgd'.
    config.fedavg = ConfigDict()
    config.fedavg.learning_rate = 1e-4  # Adam, clients
    # Beside the head: 'kernels' = those that masks cover; 'blocks' = every parameter of model.trained_blocks;
    # 'backbone' = every parameter, no prefix is cached then.
    config.fedavg.trained = "kernels"
    config.fedavg.proximal = 0.0  # μ of FedProx: clients add μ/2 · ‖w − broadcast‖² to their loss
    config.fedavg.server = "sgd"  # server's step along the mean update: 'sgd', 'adam', 'yogi' (FedOpt)
    config.fedavg.server_learning_rate = 1.0  # 1 with 'sgd' is FedAvg; for the others try 1e-4 … 1e-2
    config.fedavg.server_epsilon = 1e-3  # added to √v by 'adam' and 'yogi'; beside typical mean updates
    config.fedavg.downlink = "float32"  # type the weights are broadcast in: 'float32', 'float16', 'bfloat16'

    config.eden = ConfigDict()
    config.eden.bits = 1.0  # a trained weight, 0.001 … 8, need not be whole

    config.qsgd = ConfigDict()
    config.qsgd.levels = 16  # s, steps between 0 and a bucket's norm
    config.qsgd.bucket = 512  # weights that share a norm

    config.peft = ConfigDict()
    config.peft.kind = "bias"  # tuned beside the head: 'head' (nothing), 'bias', 'adapter', 'prompt', 'lora'
    config.peft.scope = "network"  # 'network': every block, no cache (FedPEFT); 'suffix': trained_blocks only
    config.peft.learning_rate = 1e-3  # Adam
    config.peft.adapter_width = 8  # hidden channels of an adapter
    config.peft.prompts = 10  # tokens a block, or in all where shallow
    config.peft.prompt_depth = "deep"  # 'deep': prompts in every block; 'shallow': before the first
    config.peft.lora_rank = 4  # of the updates of queries and values
    config.peft.wire = "float32"  # values both ways: 'float32', 'float16', '8bit' (stochastic rounding)

    config.robust = ConfigDict()
    config.robust.aggregator = "mean"  # of a cohort's flips: 'mean', 'clip', 'trimmed', 'median' (robust.py)
    config.robust.trim = 0.2  # fraction of clients that 'trimmed' cuts off at each end, 0 … 0.49
    config.robust.max_flip_rate = 0.0  # of the weights; who flips more is rejected; 0 = 5 × the median

    config.downlink = ConfigDict()
    config.downlink.memory = "keep"  # 'keep': clients keep what they know and are sent the news; 'none'
    config.downlink.news = "smaller"  # the cohort's payloads ('relay'), their sum ('tally'), or the 'smaller'
    config.downlink.hold = 1  # votes that a weight's change waits for; 1 = none, the server loses nothing

    # Simulated failures of clients, in the rounds after the head's (docs/reliability.md).
    config.faults = ConfigDict()
    config.faults.dropout = 0.0  # probability that a client never answers in a round
    config.faults.straggler = 0.0  # probability that a client finishes only some of its local steps
    config.faults.step_seconds = 1.0  # simulated seconds, median over clients of a local step
    config.faults.speed_spread = 0.5  # σ of the logarithm of a client's own step time
    config.faults.deadline = 0.0  # simulated seconds after which a payload no longer counts; 0 = none

    # Simulated hostile clients.
    config.attack = ConfigDict()
    # 'corrupt', 'truncate', 'replay', 'wrong_d', 'all_flip', 'random_flip', 'collude', 'collude_near'
    config.attack.kind = "none"
    config.attack.share = 0.0  # fraction of the clients that is hostile, in every round
    config.attack.flip_rate = 0.3  # fraction of the weights that 'random_flip' and colluders flip

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1  # rounds between checkpoints; round 0 and the last are always kept
    config.checkpoint.keep = 2  # checkpoints kept; a damaged one is replaced by the one before

    config.tensorboard = False  # also write every round's numbers to workdir/tensorboard
    config.wandb = ""  # Weights & Biases project to report to ([wandb] extra); '' = none

    config.cohort = ConfigDict()
    config.cohort.backend = "vmap"  # 'vmap', or 'loop' for debugging: one client, one step at a time
    config.cohort.chunk = 0  # clients a device trains at once; 0 = chosen from memory and backend
    # GiB a device may give to such a chunk, and as much to the examples; if they need more they stay on the
    # host, and a chunk of clients is sent its own. 0 = half of what is free for the examples, most of the
    # rest for a chunk.
    config.cohort.memory = 0.0
    config.cohort.weight_shards = 1  # devices that share one copy of weights and logits, of all local ones

    return config
