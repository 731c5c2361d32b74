"""Codecs of vectors (EDEN, at one bit DRIVE; QSGD; signs): error, bias, bytes, refusal of what is damaged."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltamask_jax.codecs import PayloadError, dense, eden, envelope, qsgd, rotation, rounded, signs
from tests.codecs.cases import sealed


@dataclasses.dataclass(frozen=True)
class Case:
    """A codec with its settings bound: encode(vector, round, client), decode(payload, n, round, client)."""

    name: str
    encode: Callable
    decode: Callable


def eden_case(bits):
    return Case(
        f"eden-{bits}",
        lambda x, r, c: eden.encode(x, bits, 7, round_number=r, client=c),
        lambda payload, n, r, c: eden.decode(payload, n, bits, 7, round_number=r, client=c),
    )


def qsgd_case(levels=16, bucket=512):
    return Case(
        f"qsgd-{levels}-{bucket}",
        lambda x, r, c: qsgd.encode(x, levels, bucket, 7, round_number=r, client=c),
        lambda payload, n, r, c: qsgd.decode(payload, n, levels, bucket, round_number=r, client=c),
    )


SIGNS = Case(
    "signs",
    lambda x, r, c: signs.encode(x, round_number=r, client=c),
    lambda payload, n, r, c: signs.decode(payload, n, round_number=r, client=c),
)
ALL = pytest.mark.parametrize(
    "case", [eden_case(0.3), eden_case(1.0), eden_case(2.5), qsgd_case(), SIGNS], ids=lambda case: case.name
)


GOLDEN = Path(__file__).parent / "golden"


def heavy_tailed(n, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.lognormal(size=n) * rng.normal(size=n)).astype(np.float32)


def relative_error(case, x):
    return np.sum((case.decode(case.encode(x, 1, 2), x.size, 1, 2) - x) ** 2) / np.sum(x**2)


def bias(estimates, vectors, mean):
    """How many standard errors the mean error along `mean` is from 0, and the same over all directions."""
    errors = (estimates - vectors).astype(np.float64)
    along = errors @ mean / (mean @ mean)
    standard = np.std(errors, axis=0) / np.sqrt(len(errors))
    spread = np.sum((errors.mean(axis=0) / standard) ** 2)  # χ² with as many degrees as coordinates
    degrees = errors.shape[1]
    return (
        along.mean() / (along.std() / np.sqrt(len(errors))),
        (spread - degrees) / np.sqrt(2 * degrees),
    )


@pytest.mark.parametrize(
    "case", [eden_case(0.3), eden_case(1.0), eden_case(2.5), qsgd_case(8, 128)], ids=lambda c: c.name
)
def test_the_mean_of_a_thousand_vectors_is_estimated_without_bias(case):
    rng = np.random.default_rng(3)
    mean = heavy_tailed(512, seed=4)
    vectors = (mean + rng.normal(size=(1000, 512)) * np.abs(mean).mean()).astype(np.float32)
    if case.name.startswith("qsgd"):  # rounds every bucket for itself: one payload is as good as a thousand
        estimates = case.decode(case.encode(vectors.ravel(), 1, 0), 512_000, 1, 0).reshape(1000, 512)
    else:
        estimates = np.stack([case.decode(case.encode(x, 1, k), 512, 1, k) for k, x in enumerate(vectors)])
    along, everywhere = bias(estimates, vectors, mean)
    assert abs(along) < 3 and everywhere < 3
    shrunk, _ = bias(0.95 * estimates, vectors, mean)  # what the test would say of a slightly biased codec
    assert shrunk < -3


@pytest.mark.parametrize("bits, distortion", [(1, 1 - 2 / np.pi), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_eden_reaches_the_lloyd_max_distortion(bits, distortion):
    """Distortions: J. Max, 1960, table I. The unbiased scale turns D into D / (1 − D): π/2 − 1 at one bit."""
    assert relative_error(eden_case(bits), heavy_tailed(65_536)) == pytest.approx(
        distortion / (1 - distortion), rel=0.02
    )


def test_one_bit_is_drive():
    """sign(R x) and S = ‖x‖² / ‖R x‖₁."""
    x = heavy_tailed(4096)
    payload = eden.encode(x, 1, 7, round_number=1, client=2)
    key = eden.stream_key(7, 1, 2, eden.ROTATION)
    (rotated,) = rotation.rotate(x, key)
    scale = np.sum(x**2) / np.abs(rotated).sum()
    expected = rotation.unrotate([scale * np.where(rotated > 0, 1, -1)], 4096, key)
    np.testing.assert_allclose(
        eden.decode(payload, 4096, 1, 7, round_number=1, client=2), expected, rtol=1e-4, atol=1e-4
    )
    assert np.sum((expected - x) ** 2) / np.sum(x**2) == pytest.approx(np.pi / 2 - 1, rel=0.02)


def test_errors_of_fractional_bits_lie_between():
    x = heavy_tailed(65_536)
    errors = [relative_error(eden_case(bits), x) for bits in (0.5, 1, 1.5, 2)]
    assert errors == sorted(errors, reverse=True)
    # Half of the values, each with weight 2 and one bit: (π/2) / ½ − 1.
    assert errors[0] == pytest.approx(np.pi - 1, rel=0.1)


@pytest.mark.parametrize("n, bits", [(100, 1), (65_536, 1), (70_000, 0.1), (70_000, 3), (70_000, 1.25)])
def test_eden_sends_the_bits_it_promises(n, bits):
    kept = n if bits >= 1 else round(bits * n)
    values, blocks = rotation.padded(kept), sum(count for count, _ in rotation.blocks(kept))
    size = 32 + 4 * blocks + values * max(bits, 1) / 8
    assert (
        size <= len(eden_case(bits).encode(heavy_tailed(n), 1, 2)) <= size + 3
    )  # planes end with whole bytes


def test_signs_send_a_bit_a_value_and_32_a_bucket():
    assert len(SIGNS.encode(heavy_tailed(10_001), 1, 2)) == 32 + 4 * 3 + 1251


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_qsgd_spends_the_entropy_of_its_levels(levels):
    n, bucket = 200_000, 512
    x = heavy_tailed(n)
    case = qsgd_case(levels, bucket)
    payload = case.encode(x, 1, 2)
    norms = np.repeat(np.linalg.norm(np.pad(x, (0, -n % bucket)).reshape(-1, bucket), axis=1), bucket)[:n]
    level = np.rint(np.abs(case.decode(payload, n, 1, 2)) * levels / norms).astype(int)
    p = np.bincount(level)[np.bincount(level) > 0] / n
    bits = n * -np.sum(p * np.log2(p)) + np.sum(level > 0) + 32 * -(-n // bucket)
    assert 8 * (len(payload) - 32) == pytest.approx(bits, rel=0.01, abs=3000)


def test_centroids_are_those_of_the_literature():
    np.testing.assert_allclose(eden.centroids(1), [-0.79788, 0.79788], atol=1e-5)
    np.testing.assert_allclose(eden.centroids(3)[4:], [0.2451, 0.7560, 1.344, 2.152], atol=1e-3)
    for bits in range(1, 9):
        c = eden.centroids(bits)
        assert len(c) == 1 << bits and (np.diff(c) > 0).all()


def test_samples_are_one_of_each_stretch_and_weighted_by_its_length():
    positions, weights = eden.sample(1003, 100, (np.uint32(1), np.uint32(2)))
    assert weights.sum() == 1003 and set(weights) == {10, 11}
    ends = np.cumsum(weights)
    assert (positions < ends).all() and (positions >= ends - weights).all()
    assert len(set(positions - (ends - weights))) >= 10  # all places of a stretch are taken by some


@ALL
def test_zeros_tiny_and_huge_values_survive(case):
    for x in (np.zeros(600), np.full(600, 1e-30), np.full(600, -1e30), np.eye(1, 600)[0]):
        decoded = case.decode(case.encode(x.astype(np.float32), 1, 2), 600, 1, 2)
        assert decoded.dtype == np.float32 and np.isfinite(decoded).all()
        assert x.any() or not decoded.any()


@ALL
def test_payloads_of_another_round_client_size_or_codec_are_refused(case):
    payload = case.encode(heavy_tailed(600), 1, 2)
    for n, round_number, client in ((601, 1, 2), (600, 2, 2), (600, 1, 3)):
        with pytest.raises(PayloadError):
            case.decode(payload, n, round_number, client)
    for other in (eden_case(1.5), qsgd_case(15, 512), qsgd_case(16, 256), SIGNS):
        if other.name != case.name:
            with pytest.raises(PayloadError):
                case.decode(other.encode(heavy_tailed(600), 1, 2), 600, 1, 2)


@ALL
def test_vectors_that_are_not_finite_are_the_senders_error(case):
    with pytest.raises(ValueError, match="finite"):
        case.encode(np.array([1, np.nan], np.float32), 1, 2)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bits", [0x7F80, 0x7F81, 0x7FC0, 0xFFBF])
def test_dense_infinities_and_quiet_and_signalling_nans_are_refused(bits):
    for vector in (
        np.array([bits], np.uint16).view(jnp.bfloat16),
        np.array([bits << 16], np.uint32).view(np.float32),
    ):
        payload = dense.encode(vector, round_number=1, client=2)
        with pytest.raises(PayloadError, match="not finite"):
            dense.decode(payload, 1, vector.dtype, round_number=1, client=2)


@ALL
def test_truncated_payloads_are_refused(case):
    payload = case.encode(heavy_tailed(600), 1, 2)
    for cut in range(len(payload)):
        for short in (payload[:cut], sealed(payload[:cut]) if cut >= envelope.SIZE else b""):
            with pytest.raises(PayloadError):
                case.decode(short, 600, 1, 2)


@ALL
@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_hostile_bytes_with_a_valid_checksum(case, data):
    """Decoding raises PayloadError, or gives finite values."""
    payload = bytearray(case.encode(heavy_tailed(600), 1, 2))
    start = data.draw(st.integers(4, len(payload) - 1))
    payload[start : start + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    try:
        decoded = case.decode(sealed(bytes(payload)) if len(payload) >= 32 else bytes(payload), 600, 1, 2)
    except PayloadError:
        return
    assert decoded.shape == (600,) and decoded.dtype == np.float32 and np.isfinite(decoded).all()


def test_a_claim_of_many_levels_costs_no_memory():
    """Levels that Σ|v| ≤ r·√bucket forbids are refused before anything is allocated for them."""
    n = 600
    body = bytearray(qsgd._HEAD.pack(512, 255, 0)) + np.full(255, n, "<u4").tobytes() + bytes(4000)
    payload = envelope.pack(envelope.CODEC_IDS["qsgd"], 255, n, n, 1, 2, bytes(body))
    with pytest.raises(PayloadError, match="no rounding gives"):
        qsgd.decode(payload, n, 255, 512, round_number=1, client=2)


def integers():
    """A vector from integer arithmetic alone, so that no generator's future matters."""
    return ((np.arange(1000, dtype=np.uint64) * 2654435761 % 65536).astype(np.float32) - 32768) / 1024


def dense_case(dtype):
    return Case(
        f"dense-{np.dtype(dtype)}",
        lambda x, r, c: dense.encode(np.abs(x).astype(dtype), round_number=r, client=c),
        lambda payload, n, r, c: dense.decode(payload, n, dtype, round_number=r, client=c).astype(np.float64),
    )


ROUNDED = Case(
    "rounded",
    lambda x, r, c: rounded.encode(x, np.zeros(x.size, np.uint16), round_number=r, client=c),
    lambda payload, n, r, c: rounded.decode(payload, n, round_number=r, client=c),
)
DENSE = [dense_case(dtype) for dtype in (np.float32, np.float16, jnp.bfloat16, np.uint16)]
KEPT = [eden_case(1.5), eden_case(0.25), qsgd_case(), SIGNS, ROUNDED, *DENSE]


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case.name)
def test_old_payloads_are_still_read(case):
    """Kept as files, which `python -m tests.codecs.test_values` rewrites: no format changes unseen."""
    decoded = case.decode((GOLDEN / f"values-{case.name}.bin").read_bytes(), 1000, 258, 772)
    expected = case.decode(case.encode(integers(), 258, 772), 1000, 258, 772)
    # The rotation is float arithmetic: a value at a cell's border may round the other way elsewhere.
    assert np.sum((decoded - expected) ** 2) <= (0 if case in DENSE else 0.02 * np.sum(expected**2))


@pytest.mark.parametrize("levels", range(1, 256))
def test_qsgd_values_are_finite_for_every_level_count(levels):
    """s · (r / s) rounds to infinity for some s where r is the largest float."""
    case, largest = qsgd_case(levels, 8), np.finfo(np.float32).max
    payload = bytearray(case.encode(np.eye(1, 8, dtype=np.float32)[0], 1, 2))
    at = 32 + 6 + 4 * payload[36]
    for norm in (largest, 1.0, 1e-45):
        payload[at : at + 4] = np.float32(norm).tobytes()
        decoded = case.decode(sealed(bytes(payload)), 8, 1, 2)
        assert np.isfinite(decoded).all() and decoded[0] <= np.float32(norm)
        assert norm < 1e-30 or decoded[0] == pytest.approx(norm, rel=1e-6)
    for norm in (np.inf, np.nan, -1.0, -0.0, 0.0):
        payload[at : at + 4] = np.float32(norm).tobytes()
        with pytest.raises(PayloadError):
            case.decode(sealed(bytes(payload)), 8, 1, 2)


def test_signs_of_zero_have_one_payload():
    payload = bytearray(SIGNS.encode(np.zeros(16, np.float32), 1, 2))
    assert not SIGNS.decode(bytes(payload), 16, 1, 2).any()
    payload[-1] = 1
    with pytest.raises(PayloadError, match="scale is 0"):
        SIGNS.decode(sealed(bytes(payload)), 16, 1, 2)
    tiny = np.full(4096, -1e-45, np.float32) * (np.arange(4096) < 3)  # whose mean rounds to 0
    assert not SIGNS.decode(SIGNS.encode(tiny, 1, 2), 4096, 1, 2).any()


if __name__ == "__main__":
    for case in KEPT:
        payload = case.encode(integers(), 258, 772)
        (GOLDEN / f"values-{case.name}.bin").write_bytes(payload)
