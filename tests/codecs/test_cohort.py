"""Cohorts: counts equal to decoding one by one, thread pools, settings per client."""

import dataclasses

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import membership
from tests.codecs.cases import drift, sealed

D = membership.SMALL + 9000


def cohort(clients: int, sizes, d: int = D):
    rng = np.random.default_rng(0)
    positions = [
        np.sort(rng.choice(d, sizes[k % len(sizes)], replace=False)).astype(np.uint32) for k in range(clients)
    ]
    return positions, [codecs.Context(d, round=2, client=k) for k in range(clients)]


def one_by_one(codec, payloads, contexts):
    counts = np.zeros(contexts[0].d, np.uint16)
    for payload, context in zip(payloads, contexts, strict=True):
        counts[codec.decode(payload, context)] += 1
    return counts


@pytest.mark.parametrize(
    "settings",
    [
        {"name": "bfuse", "capacity": 600},
        {"name": "bfuse", "capacity": 600, "bits": 16},
        {"name": "bfuse", "capacity": 600, "bits": 32, "arity": 4},
        {"name": "xor", "capacity": 600},
        {"name": "bfuse"},
        {"name": "rice"},
    ],
    ids=str,
)
def test_counts_equal_decoding_one_by_one(settings):
    codec = codecs.get(**settings)
    positions, contexts = cohort(7, [500, 0, 600, 599, 700])
    payloads = codecs.encode_cohort(codec, positions, contexts, threads=2)
    counts, sizes = codecs.decode_counts(codec, payloads, contexts)
    assert counts.dtype == np.uint16
    np.testing.assert_array_equal(counts, one_by_one(codec, payloads, contexts))


def test_counts_have_room_for_every_payload():
    codec = dataclasses.replace(
        codecs.get("bfuse"), count=lambda payloads, contexts, counts: [0] * len(payloads)
    )
    for clients, dtype in ((65_535, np.uint16), (65_536, np.uint32)):
        counts, _ = codecs.decode_counts(codec, [b""] * clients, [codecs.Context(8)] * clients)
        assert counts.dtype == dtype


@pytest.mark.parametrize("clients", [3, 32, 33, 64, 67])
def test_any_number_of_clients_shares_rows(clients, monkeypatch):
    monkeypatch.setattr(membership, "_SORTED_CHUNK", 1 << 10)  # so that there are several, the last one short
    codec = codecs.get("bfuse", capacity=40)
    positions, contexts = cohort(clients, [40], d=3000)
    payloads = codecs.encode_cohort(codec, positions, contexts)
    expected = one_by_one(codec, payloads, contexts)
    monkeypatch.setattr(membership, "SMALL", 0)
    counts, sizes = codecs.decode_counts(codec, payloads, contexts)
    np.testing.assert_array_equal(counts, expected)
    assert counts.sum() >= 40 * clients


@pytest.mark.parametrize(
    "settings", [{"bits": 8}, {"bits": 16}, {"bits": 32}, {"arity": 4}, {"name": "xor"}], ids=str
)
def test_the_accelerators_path_counts_the_same(settings, monkeypatch):
    codec = codecs.get(**{"name": "bfuse", "capacity": 300} | settings)
    positions, contexts = cohort(5, [300], d=5000)
    payloads = codecs.encode_cohort(codec, positions, contexts)
    expected, expected_sizes = codecs.decode_counts(codec, payloads, contexts)
    monkeypatch.setattr(membership, "SMALL", 0)
    monkeypatch.setattr(membership.jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(membership, "_COHORT_CHUNK", 1 << 11)
    counts, sizes = codecs.decode_counts(codec, payloads, contexts)
    np.testing.assert_array_equal(counts, expected)
    assert sizes == expected_sizes


def test_sizes_are_what_filters_hold_not_what_they_announce(monkeypatch):
    """Two senders whose announced numbers cancel: one holds 900 keys and says 20, the other the reverse."""
    codec = codecs.get("bfuse", capacity=1000, container="raw")
    positions, contexts = cohort(7, [100, 100, 900, 20], d=5000)
    payloads = codecs.encode_cohort(codec, positions, contexts)
    for liar, says in ((2, 20), (3, 900)):
        payloads[liar] = sealed(payloads[liar][:12] + says.to_bytes(4, "little") + payloads[liar][16:])
    held = [len(codec.decode(*pair)) for pair in zip(payloads, contexts, strict=True)]
    monkeypatch.setattr(membership, "SMALL", 0)
    monkeypatch.setattr(membership, "_SORTED_CHUNK", 1 << 10)
    assert codecs.decode_counts(codec, payloads, contexts)[1] == held


def test_orders_that_are_too_long_to_keep_are_made_anew(monkeypatch):
    codec = codecs.get("bfuse", capacity=300)
    positions, contexts = cohort(5, [300], d=5000)
    payloads = codecs.encode_cohort(codec, positions, contexts)
    expected, _ = codecs.decode_counts(codec, payloads, contexts)
    for name, value in (("SMALL", 0), ("_SORTED_CHUNK", 1 << 11), ("KEPT", 0)):
        monkeypatch.setattr(membership, name, value)
    monkeypatch.setattr(membership, "_orders", None)  # none are kept
    np.testing.assert_array_equal(codecs.decode_counts(codec, payloads, contexts)[0], expected)


def test_capacity_gives_clients_one_seed_and_shape():
    codec = codecs.get("bfuse", capacity=500, container="raw")
    positions, contexts = cohort(4, [300, 400, 450, 500])
    payloads = codecs.encode_cohort(codec, positions, contexts)
    assert len({payload[32:44] for payload in payloads}) == 1  # seed and capacity
    assert len({len(payload) for payload in payloads}) == 1


@pytest.mark.parametrize("name", ["bfuse", "rice"])
def test_bad_payloads_are_named_in_their_place_and_the_others_are_counted(name):
    codec = codecs.get(name)
    positions, contexts = cohort(5, [500])
    payloads = codecs.encode_cohort(codec, positions, contexts)
    good = [0, 2, 4]
    expected = one_by_one(codec, [payloads[k] for k in good], [contexts[k] for k in good])
    payloads[1], payloads[3] = payloads[0], b"junk"
    counts, sizes = codecs.decode_counts(codec, payloads, contexts)
    np.testing.assert_array_equal(counts, expected)
    reasons = [getattr(size, "reason", None) for size in sizes]
    assert reasons == [None, "other client", None, "wrong length", None]
    assert sum(sizes[k] for k in good) == pytest.approx(int(counts.sum()), rel=0.05)


def test_each_payload_is_decoded_once(monkeypatch):
    codec = codecs.get("rice")
    positions, contexts = cohort(6, [50])
    payloads = codecs.encode_cohort(codec, positions, contexts)
    payloads[0] = payloads[3] = b"junk"
    seen = []
    watched = dataclasses.replace(codec, decode=lambda p, c: (seen.append(c.client), codec.decode(p, c))[1])
    codecs.decode_counts(watched, payloads, contexts)
    assert sorted(seen) == list(range(6))


def test_a_filter_with_more_keys_than_it_announces_shows_in_its_size(monkeypatch):
    """Cohorts are counted together, and each by what it holds."""
    monkeypatch.setattr(membership, "SMALL", 0)
    codec = codecs.get("bfuse", capacity=2000, container="raw")  # there is room for more
    positions, contexts = cohort(6, [300], d=70_000)
    _, honest = codecs.decode_counts(codec, codecs.encode_cohort(codec, positions, contexts), contexts)
    assert all(abs(size - 300 - 70_000 / 256) < 100 for size in honest)
    positions[2] = np.arange(300, dtype=np.uint32)
    payloads = codecs.encode_cohort(codec, positions, contexts)
    full = codec.encode(np.arange(2000, dtype=np.uint32), contexts[2])
    lying = bytearray(full)
    lying[12:16] = (300).to_bytes(4, "little")
    payloads[2] = sealed(bytes(lying))
    _, sizes = codecs.decode_counts(codec, payloads, contexts)
    assert sizes[2] >= 2000 and all(sizes[k] < 700 for k in (0, 1, 3, 4, 5))
    table = bytearray(payloads[1])
    table[44:] = bytes(len(table) - 44)  # the honest shape, all slots zero
    payloads[1] = sealed(bytes(table))
    counts, sizes = codecs.decode_counts(codec, payloads, contexts)
    assert sum(sizes) == pytest.approx(int(counts.sum()), rel=0.1)


def test_clients_may_have_their_own_settings():
    settings = {
        "name": "bfuse",
        "container": "zstd",
        "clients": {"1-2": {"bits": 16}, "3": {"name": "side_info"}},
    }
    per_client = codecs.for_clients(settings, 5)
    names = [codec.name for codec in per_client]
    assert names == ["bfuse8-zstd", "bfuse16-zstd", "bfuse16-zstd", "side_info", "bfuse8-zstd"]
    assert per_client[0] is per_client[4]

    pairs = [drift(4000, 0.2, seed=k, client=k) for k in range(5)]
    positions, contexts = zip(*pairs, strict=True)
    payloads = codecs.encode_cohort(per_client, positions, contexts)
    counts, sizes = codecs.decode_counts(per_client, payloads, contexts)
    expected = np.zeros(4000, int)
    for codec, payload, context in zip(per_client, payloads, contexts, strict=True):
        expected[codec.decode(payload, context)] += 1
    np.testing.assert_array_equal(counts, expected)


def test_decoding_a_cohort_keeps_the_clients_order():
    codec = codecs.get("side_info")
    pairs = [drift(4000, 0.2, seed=k, client=k) for k in range(5)]
    positions, contexts = zip(*pairs, strict=True)
    payloads = codecs.encode_cohort(codec, positions, contexts)
    decoded = list(codecs.decode_cohort(codec, payloads, contexts, threads=3))
    for got, expected in zip(decoded, positions, strict=True):
        np.testing.assert_array_equal(got, expected)
    turned = list(codecs.decode_cohort(codec, payloads[::-1], contexts))
    assert [isinstance(item, codecs.PayloadError) for item in turned] == [True, True, False, True, True]


@pytest.mark.parametrize("clients", ["5", "0-5", "x", "2-", "-1"])
def test_ranges_beyond_the_clients_are_refused(clients):
    with pytest.raises(ValueError, match="codec clients"):
        codecs.for_clients({"name": "bfuse", "clients": {clients: {"bits": 16}}}, 5)


def test_few_clients_are_decoded_ahead_of_whoever_reads(monkeypatch):
    """Else the decoded positions of all would wait in memory: clients · d of them, where masks travel."""
    decoded = []
    codec = dataclasses.replace(codecs.get("rice"), decode=lambda payload, context: decoded.append(payload))
    reading = codecs.decode_cohort(codec, [b""] * 64, [codecs.Context(8)] * 64, threads=1)
    for read in range(1, 65):
        next(reading)
        assert read <= len(decoded) <= read + 1
    assert next(reading, "end") == "end"
