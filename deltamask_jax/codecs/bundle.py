"""Several payloads in one: the parts of a snapshot, or a round's news with the clients it is about.

Body (little-endian): u32 clients k, u32[k] their ids, ascending, u32[k] their example counts (0 where nobody
asked), u32[n] lengths of the parts, the parts. The envelope's n is the number of parts; its flags say what
they are: 0 snapshot, 1 the clients' own payloads (relay), 2 a tally of their votes.
"""

from dataclasses import dataclass

import numpy as np

from deltamask_jax.codecs import envelope
from deltamask_jax.codecs.codec import Context, PayloadError

_ID = envelope.CODEC_IDS["bundle"]
SNAPSHOT, RELAY, TALLY = range(3)
MOST_CLIENTS = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """What a payload of payloads holds.

    Attributes:
        kind: `SNAPSHOT`, `RELAY` or `TALLY`.
        clients: ids, i64[k], ascending.
        examples: of each of them, i64[k].
        parts: the payloads.
    """

    kind: int
    clients: np.ndarray
    examples: np.ndarray
    parts: list[bytes]


def pack(
    parts: list[bytes],
    context: Context,
    kind: int = SNAPSHOT,
    clients: np.ndarray | None = None,
    examples: np.ndarray | None = None,
) -> bytes:
    """One payload.

    Args:
        context: d and round.
        clients: ids i[k], ascending; none in a snapshot.
        examples: of each of them, i[k]; None: 0.
    """
    clients = np.zeros(0, np.int64) if clients is None else clients
    examples = np.zeros(len(clients), np.int64) if examples is None else examples
    numbers = np.concatenate([[len(clients)], clients, examples, [len(part) for part in parts]])
    body = b"".join((numbers.astype("<u4").tobytes(), *parts))
    return envelope.pack(_ID, kind, context.d, len(parts), context.round, context.client, body)


def unpack(payload: bytes, context: Context, parts: int | None = None) -> Bundle:
    """What a bundle holds; its parts are not looked at.

    Args:
        context: d and round.
        parts: how many there must be; None: any number.

    Raises:
        PayloadError: not such a payload.
    """
    received = envelope.unpack(payload, codec_id=_ID, d=context.d, round=context.round, client=context.client)
    body, n = received.body, received.n
    if received.flags > TALLY or (parts is not None and n != parts):
        raise PayloadError(f"bundle of kind {received.flags} with {n} parts, expected {parts}")
    k = int.from_bytes(body[:4], "little") if len(body) >= 4 else MOST_CLIENTS + 1
    if k > MOST_CLIENTS or len(body) < 4 * (1 + 2 * k + n):
        raise PayloadError("bundle is too short for the clients and parts that it announces")
    numbers = np.frombuffer(body, "<u4", 1 + 2 * k + n).astype(np.int64)
    clients, examples, lengths = np.split(numbers[1:], [k, 2 * k])
    if (np.diff(clients) <= 0).any() or lengths.sum() != len(body) - 4 * len(numbers):
        raise PayloadError("bundle does not hold the clients and parts that it announces")
    ends = 4 * len(numbers) + np.cumsum(lengths)
    each = [bytes(body[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    return Bundle(received.flags, clients, examples, each)
