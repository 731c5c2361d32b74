"""The envelope: layout, checks, and one error for anything unexpected."""

import zlib

import pytest

from deltamask_jax.codecs import PayloadError, envelope


def test_layout_is_that_of_the_wire_format_page():
    payload = envelope.pack(codec_id=7, flags=0x0102, d=1000, n=3, round=4, client=5, body=b"body")
    assert payload[:4] == b"DMJX"
    assert payload[4] == 1 and payload[5] == 7
    assert payload[6:8] == b"\x02\x01"
    fields = [int.from_bytes(payload[at : at + 4], "little") for at in range(8, 32, 4)]
    assert fields[:5] == [1000, 3, 4, 5, 4]
    assert fields[5] == zlib.crc32(payload[:28] + b"body")
    assert payload[32:] == b"body"


def test_round_trip():
    received = envelope.unpack(envelope.pack(1, 2, 30, 4, 5, 6, b"xyz"))
    assert (received.codec_id, received.flags, received.d, received.n) == (1, 2, 30, 4)
    assert (received.round, received.client, bytes(received.body)) == (5, 6, b"xyz")


def test_codec_ids_are_unique():
    assert len(set(envelope.CODEC_IDS.values())) == len(envelope.CODEC_IDS)


@pytest.mark.parametrize("field", ["codec_id", "d", "round", "client"])
def test_unexpected_fields_are_refused(field):
    payload = envelope.pack(1, 2, 30, 4, 5, 6, b"xyz")
    expected = {"codec_id": 1, "d": 30, "round": 5, "client": 6}
    envelope.unpack(payload, **expected)
    with pytest.raises(PayloadError, match=field.replace("_", " ")):
        envelope.unpack(payload, **expected | {field: 29})


def test_more_keys_than_positions_are_refused():
    with pytest.raises(PayloadError, match="31 keys"):
        envelope.unpack(envelope.pack(1, 0, 30, 31, 0, 0, b""))


def test_other_versions_and_foreign_bytes_are_refused():
    payload = envelope.pack(1, 0, 30, 1, 0, 0, b"")
    with pytest.raises(PayloadError, match="version 2"):
        envelope.unpack(payload[:4] + b"\x02" + payload[5:])
    with pytest.raises(PayloadError, match="not written by"):
        envelope.unpack(b"\x89PNG" + payload[4:])
    with pytest.raises(PayloadError, match="truncated"):
        envelope.unpack(payload + b"\0")


@pytest.mark.parametrize("field", ["codec_id", "flags", "d", "round"])
def test_fields_that_do_not_fit_are_a_callers_error(field):
    fields = {"codec_id": 1, "flags": 0, "d": 30, "n": 1, "round": 0, "client": 0, "body": b""}
    with pytest.raises(ValueError, match="out of range"):
        envelope.pack(**fields | {field: 1 << 32})


def test_a_body_longer_than_its_field_is_refused():
    class Endless(bytes):
        def __len__(self):
            return 1 << 32

    with pytest.raises(ValueError, match="4,294,967,296 bytes is more than an envelope holds"):
        envelope.pack(1, 0, 30, 1, 0, 0, Endless())
