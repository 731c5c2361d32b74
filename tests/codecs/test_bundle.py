"""Bundles: any parts come back, and a bundle that lies about its parts is refused before they are cut."""

import dataclasses
import struct
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax.codecs import SERVER, Context, PayloadError, bundle, envelope
from tests.codecs.cases import sealed

CONTEXT = Context(4000, round=258, client=SERVER)
IDS = np.array([3, 5, 1000])
PARTS = [b"one", b"", b"three"]
GOLDEN = bytes.fromhex(
    "444d4a58 01 0a 0100 a00f0000 03000000 02010000 ffffffff 2d000000 d2cb79de"  # the envelope
    "03000000 04000000 08 c403 01e2 0a000000 0c000000 ef030000"  # clients and examples
    "03000000 00000000 05000000 6f6e65 7468726565"  # lengths and parts
)


def relay() -> bytes:
    return bundle.pack(PARTS, CONTEXT, bundle.RELAY, IDS, IDS + 7)


def forged(place: int, value: int) -> bytes:
    """The relay with another u32 at a byte of its body."""
    payload = bytearray(relay())
    struct.pack_into("<I", payload, envelope.SIZE + place, value)
    return sealed(bytes(payload))


def test_bytes_of_format_version_1_are_read_and_written():
    assert relay() == GOLDEN
    held = bundle.unpack(GOLDEN, CONTEXT, parts=3)
    assert (held.kind, held.parts) == (bundle.RELAY, PARTS)
    assert held.clients.tolist() == [3, 5, 1000] and held.examples.tolist() == [10, 12, 1007]


@settings(max_examples=200, deadline=None)
@given(
    parts=st.lists(st.binary(max_size=50), max_size=9),
    kind=st.sampled_from([bundle.SNAPSHOT, bundle.RELAY, bundle.TALLY]),
    clients=st.dictionaries(st.integers(0, SERVER), st.integers(0, SERVER), max_size=9),
)
def test_any_parts_and_clients_survive(parts, kind, clients):
    ids = np.array(sorted(clients), np.int64)
    examples = np.array([clients[client] for client in ids], np.int64)
    parts = (parts + [b""] * 9)[: {bundle.RELAY: len(ids), bundle.TALLY: 1}.get(kind, len(parts))]
    payload = bundle.pack(parts, CONTEXT, kind, ids, examples)
    held = bundle.unpack(payload, CONTEXT, parts=len(parts))
    assert (held.kind, held.parts) == (kind, parts)
    np.testing.assert_array_equal(held.clients, ids)
    np.testing.assert_array_equal(held.examples, examples * (kind == bundle.RELAY))
    with pytest.raises(PayloadError):
        bundle.unpack(payload, CONTEXT, parts=len(parts) + 1)


def test_nobody_asked_for_clients_or_examples():
    held = bundle.unpack(bundle.pack(PARTS, CONTEXT), CONTEXT)
    assert held.kind == bundle.SNAPSHOT and not held.clients.size and not held.examples.size
    held = bundle.unpack(bundle.pack([b"sums"], CONTEXT, bundle.TALLY, IDS), CONTEXT)
    assert held.parts == [b"sums"] and held.examples.tolist() == [0, 0, 0]


@pytest.mark.parametrize("cut", range(len(GOLDEN)))
def test_truncations_are_refused(cut):
    for short in (GOLDEN[:cut], sealed(GOLDEN[:cut]) if cut >= envelope.SIZE else b""):
        with pytest.raises(PayloadError):
            bundle.unpack(short, CONTEXT)


def test_longer_ones_other_contexts_and_other_kinds_are_refused():
    for change in ({"d": 4001}, {"round": 259}, {"client": 0}):
        with pytest.raises(PayloadError):
            bundle.unpack(GOLDEN, dataclasses.replace(CONTEXT, **change))
    with pytest.raises(PayloadError, match="does not hold"):
        bundle.unpack(sealed(GOLDEN + b"\0"), CONTEXT)
    for flags in (3, 0x100, 0xFFFF):
        with pytest.raises(PayloadError, match="kind"):
            bundle.unpack(sealed(GOLDEN[:6] + struct.pack("<H", flags) + GOLDEN[8:]), CONTEXT)


@pytest.mark.parametrize("value", [0, 1, 2, 4, 8, 1 << 20, (1 << 20) + 1, 1 << 30, 1 << 31, 0xFFFFFFFF])
@pytest.mark.parametrize("place", [0, 4, 25, 29, 33])
def test_forged_counts_and_lengths_are_refused(place, value):
    """Of the clients (0), their gap code (4) and every part: what is not there is refused, without memory."""
    payload = forged(place, value)
    if payload == GOLDEN:
        return
    tracemalloc.start()
    try:
        if (place, value) == (29, 0):  # that part is empty
            bundle.unpack(payload, CONTEXT)
        else:
            with pytest.raises(PayloadError):
                bundle.unpack(payload, CONTEXT)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("n", [0, 1, 2, 4, 5, 4000])
def test_a_forged_number_of_parts_is_refused(n):
    payload = sealed(GOLDEN[:12] + struct.pack("<I", n) + GOLDEN[16:])
    with pytest.raises(PayloadError):
        bundle.unpack(payload, CONTEXT)


@pytest.mark.parametrize("kind", [bundle.RELAY, bundle.TALLY])
def test_news_have_one_part_per_client_or_one_alone(kind):
    for parts in (PARTS[:2], []):
        with pytest.raises(PayloadError, match="parts, expected"):
            bundle.unpack(bundle.pack(parts, CONTEXT, kind, IDS), CONTEXT)


def test_a_gap_code_of_nothing_but_zeros_takes_no_memory():
    d = 1 << 17
    gaps = bytes(10 * d) + b"\x01"
    body = bundle._HEAD.pack(1, len(gaps), 0) + gaps
    payload = envelope.pack(envelope.CODEC_IDS["bundle"], 0, d, 0, 258, SERVER, body)
    tracemalloc.start()
    try:
        with pytest.raises(PayloadError, match="longer gap code"):
            bundle.unpack(payload, dataclasses.replace(CONTEXT, d=d))
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("bits", [0, 7, 9, 31, 32, 255])
def test_a_gap_code_that_no_sender_writes_is_refused(bits):
    at = envelope.SIZE + 8
    with pytest.raises(PayloadError):
        bundle.unpack(sealed(GOLDEN[:at] + bytes([bits]) + GOLDEN[at + 1 :]), CONTEXT)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_hostile_bytes_with_a_valid_checksum(data):
    payload = bytearray(GOLDEN)
    start = data.draw(st.integers(0, len(payload) - 1))
    payload[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        held = bundle.unpack(sealed(bytes(payload)) if len(payload) >= 32 else bytes(payload), CONTEXT)
    except PayloadError:
        return
    assert held.kind <= bundle.TALLY and len(held.clients) == len(held.examples)
    assert (np.diff(held.clients) > 0).all() and all(isinstance(part, bytes) for part in held.parts)
    # Nothing is left over: who packs what was held again gets the same bytes.
    assert bundle.pack(held.parts, CONTEXT, held.kind, held.clients, held.examples)[8:] == bytes(
        sealed(bytes(payload))[8:]
    )


@settings(max_examples=100, deadline=None)
@given(junk=st.binary(max_size=200))
def test_any_bytes_are_refused(junk):
    with pytest.raises(PayloadError):
        bundle.unpack(junk, CONTEXT)
