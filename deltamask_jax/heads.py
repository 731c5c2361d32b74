"""The classification head all methods start from, and the linear-probing bracket.

DeltaMask (arXiv 2311.17299) compares three initialisations. All but the random one cost a round with every
client, whose bytes are counted as round 0:
  he   random (He et al., arXiv 1502.01852), frozen
  lp   one round of federated linear probing
  fit  linear discriminant analysis from the clients' class statistics (FiT, arXiv 2206.08671)
Beside them stands one of class means alone, the smallest to send:
  fedcof  covariances from how far the clients' class means lie apart (methods/fedcof.py)
"""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import codecs
from deltamask_jax.data import partition
from deltamask_jax.evaluation import evaluator
from deltamask_jax.federation import downlink
from deltamask_jax.federation.rounds import Round, TooFewClients, play_round
from deltamask_jax.local_training import LocalTraining
from deltamask_jax.methods.fedcof import fedcof
from deltamask_jax.methods.linear_probe import linear_probe
from deltamask_jax.methods.method import Link, Method, contexts, server_context
from deltamask_jax.privacy import mechanism
from deltamask_jax.private_random import root_key
from deltamask_jax.progress import say
from deltamask_jax.task import HEAD_PHASE, PROBE_PHASE, Cohort, Problem, Task

SHRINKAGE = 0.1  # of the covariance toward a multiple of the identity; small clients leave it singular
FLATTEST = 1e-3  # least variance of a feature, as a share of its mean square; float32 sums resolve less

WHOLE = codecs.get("dense")  # float32
SOLVED = ("fit", "fedcof")  # heads that start from nothing: no random one is drawn for them

Head = dict[str, jax.Array]  # kernel f32[features, classes], bias f32[classes]


def random_head(seed: int, width: int, classes: int) -> Head:
    """He initialisation."""
    kernel = jax.nn.initializers.he_normal()(root_key(seed), (width, classes), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(classes)}


def first_head(config, width: int, classes: int) -> Head:
    """What a problem starts with: a random head; zeros where the head's round needs none to start from."""
    if config.head.init in SOLVED:
        return {"kernel": jnp.zeros((width, classes)), "bias": jnp.zeros(classes)}
    return random_head(config.seed, width, classes)


def with_head(problem: Problem) -> tuple[Problem, Round]:
    """The problem with the head `config.head.init` asks for, and what it cost."""
    config = problem.config
    if config.head.init == "he":
        nothing = [0] * config.clients
        each = {"clients": list(range(config.clients)), "down": nothing, "up": nothing}
        return problem, Round(float("nan"), each, {}, b"")
    say(f"head: {config.head.init}, one round with every client")
    problem, method = round_of_head(problem)
    # Statistics of classes need no head to start from; the random one is told to nobody then.
    memory = None if config.head.init == "lp" else downlink.Memory.at_start(config.clients)
    state, result = play_round(problem, method, method.init(), everyone(config), memory)
    head = jax.device_put(method.network(state)[1])
    if config.head.init != "lp":  # needs no head to start from: what the random one would lose says nothing
        result = dataclasses.replace(result, train_loss=float("nan"))
    # The fitted head goes back to every client once.
    size = len(pack(head, config))
    each = result.each | {"down": [told + size for told in result.each["down"]]}
    return with_fitted(problem, config, head), dataclasses.replace(result, each=each)


def round_of_head(problem: Problem) -> tuple[Problem, Method]:
    """What is played in round 0: the problem as that round has it, and the method.

    Raises:
        KeyError: `config.head.init` is 'he', which takes no round.
    """
    config, task = problem.config, problem.task
    method = {
        "lp": lambda: linear_probe(
            task, learning_rate=config.head.learning_rate, decay=1.0, rounds=1, privacy=mechanism(config)
        ),
        "fit": lambda: _class_statistics(task),
        "fedcof": lambda: fedcof(task, **config.fedcof),
    }[config.head.init]()
    if config.head.init != "lp":  # each example is read once
        config = config.copy_and_resolve_references()
        config.head.epochs = 1
    return dataclasses.replace(problem, config=config), method


def pack(head: Head, config) -> bytes:
    """A fitted head's way down."""
    vector = np.concatenate([np.ravel(head["bias"]), np.ravel(head["kernel"])])
    return WHOLE.encode(vector, server_context(everyone(config), vector.size))


def unpack(payload: bytes, problem: Problem) -> Head:
    """The head that a client was sent.

    Raises:
        codecs.PayloadError: these bytes are none of this problem.
    """
    width, classes = problem.task.head["kernel"].shape
    known = server_context(everyone(problem.config), classes * (1 + width))
    bias, kernel = np.split(WHOLE.decode(payload, known), [classes])
    return jax.device_put({"kernel": kernel.reshape(width, classes), "bias": bias})


def with_fitted(problem: Problem, config, head: Head) -> Problem:
    """The problem of the rounds after the head's."""
    task = dataclasses.replace(problem.task, head=head)
    return dataclasses.replace(problem, config=config, task=task)


def linear_probe_accuracy(problem: Problem) -> float:
    """The lower bracket: keep training the head, on the frozen network, for as many rounds as the run has."""
    config = problem.config
    say(f"linear probe: {config.rounds} rounds of training the head alone")
    method = linear_probe(problem.task, **config.linear_probe, rounds=config.rounds)
    accuracy_of, state = evaluator(problem, method), method.init()
    for number in range(1, config.rounds + 1):
        clients = partition.cohort(
            config.clients, config.participation, config.seed, number, sampling=config.client_sampling
        )
        with contextlib.suppress(TooFewClients):  # a cohort without examples leaves the head as it is
            state, _ = play_round(problem, method, state, Cohort(config.seed, number, clients, PROBE_PHASE))
    return accuracy_of(state)


def discriminant(counts: np.ndarray, sums: np.ndarray, moment: np.ndarray) -> Head:
    """The head of linear discriminant analysis, which few or equal examples cannot make singular.

    The covariance within classes is shrunk toward the identity. Of n examples of k classes, the means take k
    degrees of freedom; the ridge is at least that share, k / n, of the variance over all classes. It decides
    below some 20 examples per class; one per class leaves the identity alone, and the nearest mean wins.

    Args:
        counts: f64[classes], examples of each class.
        sums: f64[classes, features], sum of each class's features.
        moment: f64[features, features], Σ x xᵀ over all examples.
    """
    n, features = counts.sum(), sums.shape[1]
    means, grand_mean = sums / np.maximum(counts, 1)[:, None], sums.sum(0) / n
    covariance = (moment - (means * counts[:, None]).T @ means) / n
    within, square = np.trace(covariance) / features, np.trace(moment) / (n * features)
    overall = square - grand_mean @ grand_mean / features
    ridge = max(SHRINKAGE * within, np.count_nonzero(counts) / n * overall, FLATTEST * square) or 1.0
    kernel = np.linalg.solve((1 - SHRINKAGE) * covariance + ridge * np.eye(features), means.T)
    # A class nobody holds gets the prior of half an example.
    bias = np.log(np.maximum(counts, 0.5) / n) - 0.5 * np.sum(means.T * kernel, axis=0)
    return {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}


def _class_statistics(task: Task) -> Method:
    """FiT: every client sends its class counts, class sums and the upper half of its second moment, float32;
    the server makes the discriminant of their totals."""
    start = jax.device_get(task.head)
    width, classes = start["kernel"].shape
    upper = np.triu_indices(width)
    size = classes * (1 + width) + len(upper[0])

    def init(frozen, received, private):
        return jnp.zeros(classes), jnp.zeros((classes, width)), jnp.zeros((width, width))

    def step(frozen, received, carry, batch, key):
        x, mine = batch["inputs"], jax.nn.one_hot(batch["labels"], classes) * batch["weights"][:, None]
        seen = mine.sum(0), mine.T @ x, (x * batch["weights"][:, None]).T @ x
        return jax.tree.map(jnp.add, carry, seen), jnp.float32(0)

    def final(frozen, received, carry, private):
        counts, sums, moment = carry
        return jnp.concatenate([counts, sums.ravel(), moment[upper]])

    def encode(state: Head, updates, cohort: Cohort) -> list[bytes]:
        return [WHOLE.encode(x, known) for x, known in zip(updates, contexts(cohort, size), strict=True)]

    def decode(state: Head, payloads, cohort: Cohort, accepted: bool = False):
        pairs = zip(payloads, contexts(cohort, size), strict=True)
        valid, rejected = codecs.valid_and_rejected([codecs.attempt(WHOLE.decode, *pair) for pair in pairs])
        return (np.sum(valid, axis=0, dtype=np.float64) if valid else None), rejected

    def merge(state: Head, total: np.ndarray, cohort: Cohort) -> Head:
        counts, sums, half = np.split(total, [classes, classes * (1 + width)])
        moment = np.zeros((width, width))
        moment[upper] = half
        return discriminant(counts, sums.reshape(classes, width), moment + np.triu(moment, 1).T)

    return Method(
        name="fit",
        inputs="features",
        frozen=(),
        client=LocalTraining(init, step, final),
        init=lambda: start,
        down=Link(lambda state, cohort: b"", lambda payload, cohort: start),  # nobody has to be told anything
        start=lambda state, cohort: (),
        up=Link(encode, decode),
        merge=merge,
        network=lambda state: (task.params, state),
        exact=False,
    )


def everyone(config) -> Cohort:
    """The cohort of round 0."""
    return Cohort(config.seed, 0, np.arange(config.clients), HEAD_PHASE)
