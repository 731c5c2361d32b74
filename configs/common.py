"""Every setting of a run, a line each: default, unit, meaning. Other configs start here and change a few.

What a setting may be is in deltamask_jax/config.py; docs/configuration.md has both.

python -m deltamask_jax.main --config=configs/quickstart.py --config.rounds=5 --config.mask.theta_init=0.9
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()

    config.seed = 0  # root of all randomness: split, shuffles, public uniforms, local samples
    config.method = "deltamask"  # docs/methods.md lists them
    config.rounds = 100  # rounds after the head's
    config.clients = 30  # N, clients
    config.participation = 1.0  # ρ, fraction of clients in each round
    config.client_sampling = "fixed"  # of a round: 'fixed': ρN clients; 'poisson': each with probability ρ
    config.local_epochs = 1  # E, passes over a client's examples in a round
    config.batch_size = 64  # examples
    config.eval_every = 1  # rounds between evaluations; the last round is always evaluated
    config.per_client_evaluation = False  # also the accuracy on each client's own share of the test examples
    config.byte_budget = 0  # bytes, up and down of all clients, after which no round starts; 0 = no limit
    config.resume = "auto"  # 'auto': the same command continues its run; 'fresh': moves an earlier one aside
    config.min_clients = 1  # payloads; a round that merges fewer is played again with a new cohort
    config.max_repeats = 3  # times a round is played again before the run gives up

    config.data = "digits"  # a data set; docs/data.md lists what may stand here
    config.data_dir = ""  # folder of prepared tfds data; '' = its own default
    config.train_examples = 0  # examples to train on, stratified by class; 0 = all
    config.test_examples = 0  # examples to test on, stratified by class; 0 = all
    config.validation_examples = 0  # training examples held out and evaluated in the place of the test's

    # What the columns of 'csv:', 'jsonl:' and 'hf:' data are called.
    config.columns = ConfigDict()
    config.columns.text = "text"  # column of the texts
    config.columns.image = "image"  # column of the images; 'hf:' only
    config.columns.label = "label"  # column of the classes, by name or number
    config.columns.user = ""  # column of who each example came from, for the partition 'users'; '' = none

    config.prefix_cache = "memory"  # the frozen prefix's outputs: 'memory', './folder', 'off' = ever anew

    config.partition = ConfigDict()
    config.partition.name = "dirichlet"  # how examples are dealt to clients (data/partition.py)
    config.partition.alpha = 10.0  # Dirichlet concentration: 10 ≈ IID, 0.1 = strongly non-IID
    config.partition.classes_per_client = 2  # classes a client has under 'pathological'
    config.partition.min_examples = 2  # examples that every client holds at least

    config.model = ConfigDict()
    config.model.name = "glyph_vit"  # see deltamask_jax/models
    config.model.checkpoint = "embedded"  # file, directory, 'hf:org/name', 'embedded', or '' = random weights
    config.model.revision = ""  # commit of a hub checkpoint; '' = its main branch
    config.model.image_size = 0  # pixels, side of the square input; 0 = the model's own
    config.model.max_length = 128  # tokens of a text; longer ones are cut
    config.model.trained_blocks = 5  # last blocks, which are masked; those before are the frozen prefix
    config.model.dtype = "float32"  # type the network computes in
    config.model.remat = False  # compute blocks again in the backward pass, to save memory (not on CPU)
    config.model.masked = ""  # regular expression over parameter paths; '' = all kernels of trained blocks

    config.head = ConfigDict()
    config.head.init = "lp"  # frozen after 'lp': one probing round; 'fit': LDA; 'fedcof': means; 'he': random
    config.head.epochs = 20  # passes over a client's examples in that round; cheap, features are cached
    config.head.learning_rate = 0.01  # Adam's step, in weights
    config.head.trained = True  # methods that train weights move the head too; masks never do

    # The lower bracket, run beside every method for as many rounds: the head alone keeps training.
    config.linear_probe = ConfigDict()
    config.linear_probe.learning_rate = 0.01  # Adam's step, in weights
    config.linear_probe.decay = 1.0  # the last round's step as a share of the first's, a cosine between

    # The head of class means, without training: as the start of other methods, and as a method of one round.
    config.fedcof = ConfigDict()
    config.fedcof.gamma = 0.0  # γ, added to variances within a class; 1 as published; 0 = by their spread
    config.fedcof.wire = "float16"  # type of the class means on the way up

    config.mask = ConfigDict()
    config.mask.theta_init = 0.97  # θ before round 1; near 1 keeps the pretrained network
    config.mask.theta_clip = 0.01  # probability; θ stays inside [clip, 1 − clip]
    config.mask.client_state = "fresh"  # a client's Adam each round; 'kept': goes on (FedPM's public code)
    config.mask.learning_rate = 0.1  # Adam's step in round 1, in logits
    config.mask.learning_rate_final = 0.1  # that of the last round, a cosine between; constant in the paper
    config.mask.uniforms = "shared"  # 'shared': one u for the whole cohort (paper); 'per_client'
    config.mask.kappa = 0.8  # fraction of the flips that travels in round 1, the best by KL
    config.mask.kappa_final = 0.8  # that of the last round, a cosine between; the paper's was not seen
    config.mask.ranking = "kl"  # which κ of the flips; 'random': an ablation; 'thin': random, votes count 1/κ
    config.mask.aggregator = "beta"  # 'beta': reset every 1/ρ rounds (paper); 'running'; 'control_variate'
    config.mask.lambda0 = 1.0  # votes: the prior α = β = λ₀
    config.mask.hard_rounds = 0  # before the last so many rounds θ goes to the ends of its clip; 0 = never
    config.mask.evaluate = "threshold"  # network: 'threshold', the Σθ weights of highest θ; 'mean', θ ⊙ w

    config.codec = ConfigDict()
    config.codec.name = "bfuse"  # see deltamask_jax/codecs
    config.codec.bits = 8  # bits per filter entry: 8, 16, bfuse also 32; false positives at rate 2^-bits
    config.codec.arity = 3  # slots per key of 'bfuse'
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
    config.klms.bits = 8  # bits per block; 2^bits candidates
    config.klms.block_kl = 2.0  # nats of KL(θ_k ‖ θ_g) per block; 2^bits must be several times exp(block_kl)

    # Training and averaging of weights: 'fedavg' and what compresses it, 'eden', 'drive', 'qsgd', 'signsgd'.
    config.fedavg = ConfigDict()
    config.fedavg.learning_rate = 1e-4  # step of the clients' Adam, in weights
    config.fedavg.decay = 1.0  # the last round's step as a share of the first's, a cosine between
    config.fedavg.trained = "kernels"  # and the head: masked 'kernels', all of trained 'blocks', 'backbone'
    config.fedavg.proximal = 0.0  # μ of FedProx: clients add μ/2 · ‖w − broadcast‖² to their loss
    config.fedavg.server = "sgd"  # optimiser of its step along the mean update (FedOpt)
    config.fedavg.server_learning_rate = 1.0  # its step; 1 with 'sgd' is FedAvg, others need 1e-4 to 1e-2
    config.fedavg.server_epsilon = 1e-3  # added to √v by 'adam' and 'yogi', in mean updates
    config.fedavg.downlink = "float32"  # type the weights are broadcast in

    config.eden = ConfigDict()
    config.eden.bits = 1.0  # bits per trained weight, need not be whole

    config.qsgd = ConfigDict()
    config.qsgd.levels = 16  # s, steps between 0 and a bucket's norm
    config.qsgd.bucket = 512  # weights that share a norm

    config.peft = ConfigDict()
    config.peft.kind = "bias"  # tuned beside the head; 'head': nothing else; docs/peft.md counts each kind
    config.peft.scope = "network"  # 'network': every block, no cache (FedPEFT); 'suffix': trained_blocks only
    config.peft.learning_rate = 1e-3  # Adam's step, in weights
    config.peft.decay = 1.0  # the last round's step as a share of the first's, a cosine between
    config.peft.adapter_width = 8  # hidden channels of an adapter
    config.peft.prompts = 10  # tokens per block, or in all where shallow
    config.peft.prompt_depth = "deep"  # 'deep': prompts in every block; 'shallow': before the first
    config.peft.lora_rank = 4  # rank of the updates of queries and values, for 'lora' and 'unilora'
    config.peft.fedsb_rank = 16  # r; 'fedsb' trains r × r numbers in each kernel of attention and MLP
    config.peft.unilora_size = 1024  # numbers that 'unilora' trains in all
    config.peft.wire = "float32"  # type of values, both ways; '8bit' by stochastic rounding

    # One bit per client and direction each way, without gradients; a round is one step.
    config.feedsign = ConfigDict()
    config.feedsign.trained = "kernels"  # and the head: masked 'kernels', or what config.peft tunes: 'peft'
    config.feedsign.learning_rate = 1e-5  # η, by which every weight moves per direction
    config.feedsign.perturbation = 1e-3  # μ, how far along a direction clients look, per weight
    config.feedsign.directions = 1  # bits per client and round, tried at the same weights; 1 in the paper

    config.robust = ConfigDict()
    config.robust.aggregator = "mean"  # estimator of a cohort's mean flips (robust.py)
    config.robust.trim = 0.2  # fraction of clients that 'trimmed' cuts off at each end
    config.robust.max_flip_rate = 0.0  # fraction of weights; who flips more is rejected; 0 = 5 × the median

    config.downlink = ConfigDict()
    config.downlink.memory = "keep"  # of clients between rounds: who keeps what it knew is sent the news
    config.downlink.news = "smaller"  # what news are: the cohort's payloads, their votes' sum, the smaller
    config.downlink.hold = 1  # votes that a weight's change waits for before it is told; 1 = told at once

    # Differential privacy, with the [dp] extra: docs/privacy.md says what it protects and what it does not.
    config.dp = ConfigDict()
    config.dp.level = "none"  # what is protected: one 'example' of a client, one 'client', or 'none'
    config.dp.epsilon = 5.0  # ε that the run may spend; it stops before a round that would spend more
    config.dp.delta = 1e-5  # δ; below one over the number of examples or clients
    config.dp.clip = 1.0  # C, norm of an example's gradient or of a client's update
    config.dp.noise_multiplier = 0.0  # z, noise in units of C; 0 = the least that all rounds need
    config.dp.microbatch = 16  # most examples of a client whose gradients are held at once

    # Simulated failures of clients, in the rounds after the head's (docs/reliability.md).
    config.faults = ConfigDict()
    config.faults.dropout = 0.0  # probability that a client never answers in a round
    config.faults.straggler = 0.0  # probability that a client finishes only some of its local steps
    config.faults.step_seconds = 1.0  # simulated seconds, median over clients of a local step
    config.faults.speed_spread = 0.5  # σ of the logarithm of a client's own step time
    config.faults.deadline = 0.0  # simulated seconds after which a payload no longer counts; 0 = none

    # Simulated hostile clients.
    config.attack = ConfigDict()
    config.attack.kind = "none"  # what they send (federation/attacks.py)
    config.attack.share = 0.0  # fraction of the clients that is hostile, in every round
    config.attack.flip_rate = 0.3  # fraction of the weights that 'random_flip' and colluders flip

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 1  # rounds between checkpoints; round 0 and the last are always kept
    config.checkpoint.keep = 2  # checkpoints kept; a damaged one is replaced by the one before

    config.tensorboard = False  # also write every round's numbers to workdir/tensorboard
    config.wandb = ""  # Weights & Biases project to report to ([wandb] extra); '' = none

    config.cohort = ConfigDict()
    config.cohort.backend = "vmap"  # 'vmap', or 'loop' for debugging: one client, one step at a time
    config.cohort.chunk = 0  # clients that a device trains at once; 0 = chosen from memory and backend
    config.cohort.memory = 0.0  # GiB a device gives a chunk, and as much to examples; 0 = what is free
    config.cohort.weight_shards = 1  # devices that share one copy of weights and logits, of all local ones

    return config
