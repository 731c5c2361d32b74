"""Who holds which examples: partitions of a data set over clients, and who takes part in a round.

Every partitioner uses every example exactly once: clients differ in size, none is truncated.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deltamask_jax.registry import look_up

PARTITIONS = ("dirichlet", "iid", "pathological", "users")
_TRIES = 10_000  # Dirichlet draws before giving up on the minimum,
_SHARES = 30_000_000  # or fewer, of so many shares in all: a few seconds


def split(
    name: str,
    labels: np.ndarray,
    num_clients: int,
    *,
    alpha: float = 10.0,
    classes_per_client: int = 2,
    users: np.ndarray | None = None,
    min_examples: int = 1,
    seed: int = 0,
) -> list[np.ndarray]:
    """Splits the examples over clients.

    Args:
        name: 'dirichlet', 'iid', 'pathological' or 'users'.
        labels: i32[n].
        num_clients: number of clients, each of which gets at least `min_examples`.
        alpha: concentration of 'dirichlet'; small is heterogeneous.
        classes_per_client: of 'pathological'.
        users: i32[n], who each example came from, for 'users'.
        min_examples: smallest allowed client, examples.
        seed: the same seed gives the same split.

    Returns:
        Sorted i64 indices of each client's examples; together 0 … n−1, each once.

    Raises:
        ValueError: unknown name, or no such split exists.
    """
    labels = np.asarray(labels)
    if num_clients < 1:
        raise ValueError(f"num_clients must be at least 1, got {num_clients}")
    if num_clients * min_examples > len(labels):
        raise ValueError(
            f"{len(labels)} examples cannot give {num_clients} clients {min_examples} each: "
            "lower num_clients or min_examples"
        )
    rng = np.random.default_rng(seed)
    match name:
        case "dirichlet":
            parts = _dirichlet(labels, num_clients, alpha, min_examples, rng)
        case "iid":
            parts = np.array_split(rng.permutation(len(labels)), num_clients)
        case "pathological":
            parts = _pathological(labels, num_clients, classes_per_client, rng)
        case "users":
            parts = _by_user(users, len(labels), num_clients, rng)
        case _:
            look_up("partition", name, dict.fromkeys(PARTITIONS))  # refuses it, naming the nearest
    smallest = min(len(part) for part in parts)
    if smallest < min_examples:
        raise ValueError(
            f"the {name} partition leaves a client {smallest} examples, min_examples is "
            f"{min_examples}: lower num_clients or min_examples"
        )
    return [np.sort(part) for part in parts]


def _dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, min_examples: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Each class is dealt out in proportions ~ Dir(alpha) over the clients (Yurochkin et al., arXiv
    1905.12022; Li et al., arXiv 2102.02079), drawn again until every client has its minimum."""
    if not 0 < alpha < np.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha}; 'iid' gives equal shares")
    by_class = _shuffled_classes(labels, rng)
    class_sizes = np.array([len(members) for members in by_class])
    tries = int(np.clip(_SHARES // (num_clients * len(by_class)), 100, _TRIES))
    for _ in range(tries):
        shares = rng.dirichlet(np.full(num_clients, alpha), size=len(by_class))
        ends = np.rint(np.cumsum(shares, axis=1) * class_sizes[:, None]).astype(np.int64)
        sizes = np.diff(ends, axis=1, prepend=0).sum(axis=0)
        if sizes.min() >= min_examples:
            return _deal(by_class, ends)
    raise ValueError(
        f"{tries} draws of Dirichlet(alpha={alpha:g}) never gave all {num_clients} clients "
        f"{min_examples} of {len(labels)} examples: raise alpha or lower min_examples"
    )


def _pathological(
    labels: np.ndarray, num_clients: int, classes_per_client: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Each client holds exactly `classes_per_client` classes (McMahan et al., arXiv 1602.05629, but
    their shards may straddle classes); a class is shared equally by the clients that hold it."""
    by_class = [members for members in _shuffled_classes(labels, rng) if len(members)]
    classes = len(by_class)
    if not 1 <= classes_per_client <= classes:
        raise ValueError(f"classes_per_client must be in 1 … {classes}, got {classes_per_client}")
    if num_clients * classes_per_client < classes:
        raise ValueError(
            f"{num_clients} clients of {classes_per_client} classes cannot hold all {classes}: "
            "raise classes_per_client or num_clients"
        )
    held = np.zeros((classes, num_clients), bool)
    for client in range(num_clients):
        least_held = np.lexsort((rng.random(classes), held.sum(axis=1)))  # ties at random
        held[least_held[:classes_per_client], client] = True
    rank = np.cumsum(held, axis=1)  # holders up to and including this client
    sizes = np.array([len(members) for members in by_class])
    return _deal(by_class, rank * sizes[:, None] // rank[:, -1:])


def _by_user(
    users: np.ndarray | None, n: int, num_clients: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """Users stay whole; of more users than clients, each next largest joins the smallest client."""
    if users is None:
        raise ValueError("this data set names no users: choose another partition")
    ids, user_of = np.unique(np.asarray(users), return_inverse=True)
    if len(user_of) != n:
        raise ValueError(f"{len(user_of)} user ids for {n} examples")
    if len(ids) < num_clients:
        raise ValueError(f"{len(ids)} users cannot make {num_clients} clients: lower num_clients")
    sizes = np.bincount(user_of)
    client_of_user, load = np.zeros(len(ids), np.int64), np.zeros(num_clients, np.int64)
    for user in np.lexsort((rng.random(len(ids)), -sizes)):
        client_of_user[user] = np.argmin(load)
        load[client_of_user[user]] += sizes[user]
    client_of = client_of_user[user_of]
    return [np.flatnonzero(client_of == client) for client in range(num_clients)]


def test_split(
    train_parts: list[np.ndarray], train_labels: np.ndarray, test_labels: np.ndarray, seed: int = 0
) -> list[np.ndarray]:
    """Deals out the test examples so that each client's share has its training label distribution.

    Each class's test examples go to the clients in proportion to how many of its training examples
    they hold (systematic rounding: no client is favoured, counts are within one of exact). A client
    too small for one expected example may get none. A class nobody trains on is dealt evenly.

    Args:
        train_parts: each client's training indices.
        train_labels: i32[n] of the training split.
        test_labels: i32[m] of the test split.
        seed: the same seed gives the same shares.

    Returns:
        Sorted i64 indices into the test split for each client; together 0 … m−1, each once.
    """
    rng = np.random.default_rng(seed)
    by_class = _shuffled_classes(test_labels, rng)
    held = histogram(train_parts, train_labels, len(by_class)).T[: len(by_class)]
    held = np.where(held.sum(axis=1, keepdims=True) == 0, 1, held)  # i64[classes, clients]
    total = held.sum(axis=1, keepdims=True)
    sizes = np.array([len(members) for members in by_class])[:, None]
    offset = rng.integers(0, total)  # of the rounding, one per class
    ends = (np.cumsum(held, axis=1) * sizes + offset) // total
    return [np.sort(part) for part in _deal(by_class, ends)]


# A partitioner, whatever pytest makes of its name.
test_split.__test__ = False  # ty: ignore[missing-attribute]


def cohort(
    num_clients: int,
    participation: float,
    seed: int,
    round: int,
    attempt: int = 0,
    sampling: str = "fixed",
) -> np.ndarray:
    """The clients of a round, drawn from (seed, round, attempt): sorted i64[k].

    Args:
        sampling: 'fixed': `cohort_size` of them, without replacement; 'poisson': each with probability
            `participation`, so that nobody may be among them.

    Raises:
        ValueError: participation is not in (0, 1].
    """
    size = cohort_size(num_clients, participation)
    rng = np.random.default_rng([seed, round, attempt] if attempt else [seed, round])
    if sampling == "poisson":
        return np.flatnonzero(rng.random(num_clients) < participation)
    return np.sort(rng.choice(num_clients, size, replace=False))


def cohort_size(num_clients: int, participation: float) -> int:
    """Clients of a round of fixed size, at least one.

    Raises:
        ValueError: participation is not in (0, 1].
    """
    if not 0 < participation <= 1:
        raise ValueError(f"participation must be in (0, 1], got {participation}")
    return max(1, int(np.floor(participation * num_clients + 0.5)))


_NAMED = 30  # classes that a legend has room for
_HIGH, _WIDE = 600, 2000  # pixels that a picture of the split has room for


def save(
    workdir: str | Path, parts: list[np.ndarray], labels: np.ndarray, class_names: Sequence[str]
) -> None:
    """Writes the split to `split.json`, one client per line, and draws it to `split.png`.

    A line holds the client's number of examples, how many of each class, and their indices.

    Args:
        workdir: an existing directory.
        parts: each client's training indices.
        labels: i32[n] of the training split.
        class_names: of the classes 0 … C−1.
    """
    counts = histogram(parts, labels, len(class_names))
    lines = [
        json.dumps(
            {"examples": len(part), "labels": row.tolist(), "indices": np.asarray(part).tolist()},
            separators=(",", ":"),
        )
        for part, row in zip(parts, counts, strict=True)
    ]
    head = f'{{"class_names":{json.dumps(list(class_names))},\n"clients":[\n'
    Path(workdir, "split.json").write_text(head + ",\n".join(lines) + "\n]}\n")
    _draw(counts, class_names).savefig(Path(workdir, "split.png"), dpi=120)


def stack_bars(axes: Any, counts: np.ndarray, colours: Sequence[Any]) -> None:
    """A stacked bar per client, labelled by class.

    An image holds them all, as a rectangle for each client and class takes long to draw. Of more clients than
    it has room for, every n-th is drawn.

    Args:
        counts: i[clients, classes].
        colours: of the classes; a legend knows the first `_NAMED` of them.
    """
    from matplotlib.colors import to_rgba_array

    clients, tops = len(counts), counts[:: -(-len(counts) // _WIDE)].cumsum(axis=1)
    highest = max(counts.sum(axis=1).max(initial=0), 1)
    heights = (np.arange(_HIGH)[:, None] + 0.5) / _HIGH * highest
    kind = np.zeros((_HIGH, len(tops)), np.int32)  # classes that end below; all of them: nothing is there
    for top in tops.T:
        kind += heights >= top
    image = np.append(to_rgba_array(colours), np.zeros((1, 4)), axis=0)[kind]
    columns = 8 if clients <= 100 else 1  # per client; the last is the gap where there is room for one
    image = np.repeat(image, columns, axis=1)
    shift = 0.0
    if columns > 1:
        image[:, columns - 1 :: columns], shift = 0, 0.5 / columns  # a client's number is below its middle
    axes.imshow(
        image,
        origin="lower",
        aspect="auto",
        interpolation="nearest",
        extent=(shift - 0.5, shift + clients - 0.5, 0, highest),
    )
    for k, colour in enumerate(colours[:_NAMED]):
        axes.bar(0, 0, color=colour, label=str(k))  # for the legend


def _draw(counts: np.ndarray, class_names: Sequence[str]):
    """A stacked bar per client, a colour per class; the legend only where it can be read."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # no pyplot: no global state, no display

    clients, classes = counts.shape
    figure = Figure(figsize=(min(16.0, max(6.0, 2.5 + 0.22 * clients)), 4), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["tab10" if classes <= 10 else "tab20" if classes <= 20 else "turbo"]
    stack_bars(axes, counts, [colours(k if classes <= 20 else k / (classes - 1)) for k in range(classes)])
    axes.set(xlabel="client", ylabel="training examples", xlim=(-0.6, clients - 0.4))
    axes.set_ylim(0, 1.03 * max(counts.sum(axis=1).max(), 1))
    axes.xaxis.get_major_locator().set_params(integer=True)  # ty: ignore[unknown-argument]
    axes.spines[["top", "right"]].set_visible(False)
    if classes <= _NAMED:
        legend = figure.legend(
            loc="outside right center",
            ncols=1 + classes // 16,
            reverse=True,  # as the bars are stacked
            fontsize="small",
            frameon=False,
        )
        for text in legend.get_texts():  # named here: a label is markup, and none where it starts with "_"
            text.set_text(class_names[int(text.get_text())])
            text.set_parse_math(False)
    else:
        axes.set_title(f"{classes} classes, coloured by index", fontsize="medium")
    return figure


def histogram(parts: list[np.ndarray], labels: np.ndarray, num_classes: int = 0) -> np.ndarray:
    """Examples of each class at each client, i64[clients, classes]."""
    labels = np.asarray(labels)
    num_classes = max(num_classes, labels.max(initial=-1) + 1)
    return np.stack([np.bincount(labels[part], minlength=num_classes) for part in parts])


def _shuffled_classes(labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Shuffled positions of each class 0 … max; classes without examples are empty."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    return np.split(order, np.cumsum(np.bincount(labels))[:-1])


def _deal(by_class: list[np.ndarray], ends: np.ndarray) -> list[np.ndarray]:
    """Cuts each class at `ends: i64[classes, clients]`; client k gets every class's k-th piece."""
    pieces = [np.split(members, cuts[:-1]) for members, cuts in zip(by_class, ends, strict=True)]
    return [np.concatenate(of_client) for of_client in zip(*pieces, strict=True)]
