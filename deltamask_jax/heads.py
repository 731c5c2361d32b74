"""The classification head all methods start from, and the linear-probing bracket.

DeltaMask (arXiv 2311.17299) compares three initialisations. All but the random one cost a round with every
client, whose bytes are counted as round 0:
  he   random (He et al., arXiv 1502.01852), frozen
  lp   one round of federated linear probing
  fit  linear discriminant analysis from the clients' class statistics (FiT, arXiv 2206.08671)
Beside them stands one of class means alone, the smallest to send:
  fedcof  covariances from how far the clients' class means lie apart (methods/fedcof.py)
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from deltamask_jax import codecs
from deltamask_jax.data import partition
from deltamask_jax.evaluation import evaluator
from deltamask_jax.federation.rounds import Round, play_round
from deltamask_jax.methods import Method
from deltamask_jax.methods.fedcof import fedcof
from deltamask_jax.methods.linear_probe import linear_probe
from deltamask_jax.methods.method import contexts, server_context
from deltamask_jax.private_random import root_key
from deltamask_jax.progress import say
from deltamask_jax.task import HEAD_PHASE, PROBE_PHASE, Cohort, Problem

SHRINKAGE = 0.1  # of the covariance toward a multiple of the identity; small clients leave it singular
FLATTEST = 1e-3  # least variance of a feature, as a share of its mean square; float32 sums resolve less

SOLVED = ("fit", "fedcof")  # heads that start from nothing: no random one is drawn for them

Head = dict[str, jax.Array]  # kernel f32[features, classes], bias f32[classes]


def random_head(seed: int, width: int, classes: int) -> Head:
    """He initialisation."""
    kernel = jax.nn.initializers.he_normal()(root_key(seed), (width, classes), jnp.float32)
    return {"kernel": kernel, "bias": jnp.zeros(classes)}


def with_head(problem: Problem) -> tuple[Problem, Round]:
    """The problem with the head `config.head.init` asks for, and what it cost."""
    config = problem.config
    if config.head.init == "he":
        return problem, Round(float("nan"), 0, 0, config.clients, {}, b"")
    say(f"head: {config.head.init}, one round with every client")
    play = {"lp": _linear_probing_round, "fit": _discriminant_round, "fedcof": _class_means_round}
    head, result = play[config.head.init](problem)
    # The fitted head goes back to every client once.
    vector = np.concatenate([np.ravel(head["bias"]), np.ravel(head["kernel"])])
    payload = codecs.get("dense").encode(vector, server_context(_everyone(config), vector.size))
    down = result.downlink_bytes + config.clients * len(payload)
    task = dataclasses.replace(problem.task, head=jax.device_put(head))
    return dataclasses.replace(problem, task=task), dataclasses.replace(result, downlink_bytes=down)


def linear_probe_accuracy(problem: Problem) -> float:
    """The lower bracket: keep training the head, on the frozen network, for as many rounds as the run has."""
    config = problem.config
    say(f"linear probe: {config.rounds} rounds of training the head alone")
    method = _linear_probe(problem, config.linear_probe.learning_rate)
    accuracy_of, state = evaluator(problem, method), method.init()
    for number in range(1, config.rounds + 1):
        clients = partition.cohort(config.clients, config.participation, config.seed, number)
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


def _linear_probing_round(problem: Problem) -> tuple[Head, Round]:
    config = problem.config
    method = _linear_probe(problem, config.head.learning_rate)
    state, result = play_round(problem, method, method.init(), _everyone(config))
    return state.weights, result


def _discriminant_round(problem: Problem) -> tuple[Head, Round]:
    """Every client sends its class counts, class sums and the upper half of its second moment, float32."""
    classes = problem.task.head["bias"].size
    features, labels = (np.asarray(x) for x in (problem.inputs["features"][0], problem.labels[0]))
    width = features.shape[1]
    upper = np.triu_indices(width)
    size = classes * (1 + width) + len(upper[0])
    codec, payloads = codecs.get("dense"), []
    known = contexts(_everyone(problem.config), size)
    for part, its in zip(problem.parts, known, strict=True):
        x, y = features[part], np.eye(classes, dtype=np.float32)[labels[part]]
        statistics = np.concatenate([y.sum(0), (y.T @ x).ravel(), (x.T @ x)[upper]])
        payloads.append(codec.encode(statistics, its))
    total = sum(codec.decode(*pair).astype(np.float64) for pair in zip(payloads, known, strict=True))
    counts, sums, half = np.split(total, [classes, classes * (1 + width)])
    moment = np.zeros((width, width))
    moment[upper] = half
    moment = moment + np.triu(moment, 1).T
    uplink = sum(len(payload) for payload in payloads)
    result = Round(float("nan"), uplink, 0, len(payloads), {}, payloads[-1])
    return discriminant(counts, sums.reshape(classes, width), moment), result


def _class_means_round(problem: Problem) -> tuple[Head, Round]:
    """FedCOF's one round, in which everybody takes part and reads each example once."""
    config = problem.config.copy_and_resolve_references()
    config.head.epochs = 1
    method = fedcof(problem.task, **config.fedcof)
    problem = dataclasses.replace(problem, config=config)
    head, result = play_round(problem, method, method.init(), _everyone(config))
    # Class means need no head to start from; what its random one would lose says nothing.
    return head, dataclasses.replace(result, train_loss=float("nan"), downlink_bytes=0, snapshots=0)


def _linear_probe(problem: Problem, learning_rate: float) -> Method:
    return linear_probe(problem.task, learning_rate=learning_rate)


def _everyone(config) -> Cohort:
    """The cohort of round 0."""
    return Cohort(config.seed, 0, np.arange(config.clients), HEAD_PHASE)
