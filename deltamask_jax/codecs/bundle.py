"""Several payloads in one: the parts of a snapshot, or a round's news with the clients it is about.

Body (little-endian): u32 clients k, u32 bytes G and u8 remainder bits of the gap code (codecs/rice.py) of
their ids, ascending; u8[G] that code; of a relay u32[k] their example counts (a follower refuses 0); u32[n]
lengths of the parts; the parts. The envelope's n is the number of parts; its flags say what they are:
0 snapshot, 1 the clients' own payloads (relay), 2 a tally of their votes.
"""

import struct
from dataclasses import dataclass

import numpy as np

from deltamask_jax.codecs import envelope, rice
from deltamask_jax.codecs.codec import Context, PayloadError

_ID = envelope.CODEC_IDS["bundle"]
_HEAD = struct.Struct("<IIB")
SNAPSHOT, RELAY, TALLY = range(3)
MOST_CLIENTS = 1 << 20


@dataclass(frozen=True)
class Bundle:
    """What a payload of payloads holds.

    Attributes:
        kind: `SNAPSHOT`, `RELAY` or `TALLY`.
        clients: ids, i64[k], ascending.
        examples: of each of them in a relay, i64[k]; else 0.
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
        examples: of each of them, i[k], which only a relay tells; None: 0.
    """
    clients = np.zeros(0, np.int64) if clients is None else np.asarray(clients)
    bits = _remainder_bits(clients)
    gaps = rice.pack_gaps(clients, bits)
    numbers = [len(part) for part in parts]
    if kind == RELAY:
        numbers = [*(np.zeros(len(clients), np.int64) if examples is None else examples), *numbers]
    head = _HEAD.pack(len(clients), len(gaps), bits)
    body = b"".join((head, gaps, np.array(numbers, "<u4").tobytes(), *parts))
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
    kind, n, body = received.flags, received.n, received.body
    k, gap_bytes, bits = _HEAD.unpack_from(body) if len(body) >= _HEAD.size else (MOST_CLIENTS + 1, 0, 0)
    its = {RELAY: k, TALLY: 1}.get(kind, n)
    if kind > TALLY or n != its or parts not in (None, n):
        raise PayloadError(
            f"bundle of kind {kind} with {n} parts, expected {its if parts is None else parts}"
        )
    start, told = _HEAD.size + gap_bytes, k if kind == RELAY else 0
    if k > MOST_CLIENTS or len(body) < start + 4 * (told + n):
        raise PayloadError("bundle is too short for the clients and parts that it announces")
    # With the remainder bits that `rice` chooses, quotients add up to no more than 3 per client.
    if gap_bytes > (4 * k + 7) // 8 + (k * bits + 7) // 8:
        raise PayloadError("bundle has a longer gap code than its clients need")
    clients = rice.unpack_gaps(body[_HEAD.size : start], k, bits, 1 << 32).astype(np.int64)
    numbers = np.frombuffer(body[start : start + 4 * (told + n)], "<u4").astype(np.int64)
    examples, lengths = np.split(numbers, [told])
    ends = start + 4 * len(numbers) + np.cumsum(lengths)
    if bits != _remainder_bits(clients) or start + 4 * len(numbers) + lengths.sum() != len(body):
        raise PayloadError("bundle does not hold the clients and parts that it announces")
    each = [bytes(body[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    return Bundle(kind, clients, examples if kind == RELAY else np.zeros(k, np.int64), each)


def _remainder_bits(clients: np.ndarray) -> int:
    """Of the gap code of these ids."""
    return rice.remainder_bits(len(clients), int(clients[-1]) + 1) if len(clients) else 0
