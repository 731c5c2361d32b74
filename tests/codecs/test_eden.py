"""Codecs of vectors (EDEN, at one bit DRIVE; QSGD; signs): error, bias, bytes, refusal of what is damaged."""

import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import Context, PayloadError, eden, envelope, qsgd, rotation
from deltamask_jax.public_random import ROTATION
from tests.codecs.cases import every_codec, heavy_tailed, of_type, sealed

SIGNS = codecs.get("signs")
INEXACT = pytest.mark.parametrize(
    "codec",
    [codec for codec in every_codec("values") if not codec.exact and codec.name != "rounded"],
    ids=lambda codec: codec.name,
)


def context_of(n: int, client: int = 2) -> Context:
    return Context(n, round=1, client=client, seed=7)


def sent(codec, x, client=2):
    """What arrives."""
    context = context_of(x.size, client)
    return codec.decode(codec.encode(x, context), context)


def eden_of(bits):
    return codecs.get("eden", bits=bits)


def qsgd_of(levels=16, bucket=512):
    return codecs.get("qsgd", levels=levels, bucket=bucket)


def relative_error(codec, x):
    return np.sum((sent(codec, x) - x) ** 2) / np.sum(x**2)


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
    "codec", [eden_of(0.3), eden_of(1.0), eden_of(2.5), qsgd_of(8, 128)], ids=lambda codec: codec.name
)
def test_the_mean_of_a_thousand_vectors_is_estimated_without_bias(codec):
    rng = np.random.default_rng(3)
    mean = heavy_tailed(512, seed=4)
    vectors = (mean + rng.normal(size=(1000, 512)) * np.abs(mean).mean()).astype(np.float32)
    if codec.name.startswith("qsgd"):  # rounds every bucket for itself: one payload is as good as a thousand
        estimates = sent(codec, vectors.ravel(), client=0).reshape(1000, 512)
    else:
        estimates = np.stack([sent(codec, x, client=k) for k, x in enumerate(vectors)])
    along, everywhere = bias(estimates, vectors, mean)
    assert abs(along) < 3 and everywhere < 3
    shrunk, _ = bias(0.95 * estimates, vectors, mean)  # what the test would say of a slightly biased codec
    assert shrunk < -3


@pytest.mark.parametrize("bits, distortion", [(1, 1 - 2 / np.pi), (2, 0.1175), (3, 0.03454), (4, 0.009497)])
def test_eden_reaches_the_lloyd_max_distortion(bits, distortion):
    """Distortions: J. Max, 1960, table I. The unbiased scale turns D into D / (1 − D): π/2 − 1 at one bit."""
    assert relative_error(eden_of(bits), heavy_tailed(65_536)) == pytest.approx(
        distortion / (1 - distortion), rel=0.02
    )


def test_one_bit_is_drive():
    """sign(R x) and S = ‖x‖² / ‖R x‖₁."""
    x = heavy_tailed(4096)
    key = context_of(4096).stream(ROTATION)
    (rotated,) = rotation.rotate(x, key)
    scale = np.sum(x**2) / np.abs(rotated).sum()
    expected = rotation.unrotate([scale * np.where(rotated > 0, 1, -1)], 4096, key)
    np.testing.assert_allclose(sent(eden_of(1), x), expected, rtol=1e-4, atol=1e-4)
    assert np.sum((expected - x) ** 2) / np.sum(x**2) == pytest.approx(np.pi / 2 - 1, rel=0.02)


def test_errors_of_fractional_bits_lie_between():
    x = heavy_tailed(65_536)
    errors = [relative_error(eden_of(bits), x) for bits in (0.5, 1, 1.5, 2)]
    assert errors == sorted(errors, reverse=True)
    # Half of the values, each with weight 2 and one bit: (π/2) / ½ − 1.
    assert errors[0] == pytest.approx(np.pi - 1, rel=0.1)


@pytest.mark.parametrize("n, bits", [(100, 1), (65_536, 1), (70_000, 0.1), (70_000, 3), (70_000, 1.25)])
def test_eden_sends_the_bits_it_promises(n, bits):
    kept = n if bits >= 1 else round(bits * n)
    values, blocks = rotation.padded(kept), sum(count for count, _ in rotation.blocks(kept))
    size = 32 + 4 * blocks + values * max(bits, 1) / 8
    payload = eden_of(bits).encode(heavy_tailed(n), context_of(n))
    assert size <= len(payload) <= size + 3  # planes end with whole bytes


def test_signs_send_a_bit_a_value_and_32_a_bucket():
    assert len(SIGNS.encode(heavy_tailed(10_001), context_of(10_001))) == 32 + 4 * 3 + 1251


@pytest.mark.parametrize("levels", [1, 16, 255])
def test_qsgd_spends_the_entropy_of_its_levels(levels):
    n, bucket = 200_000, 512
    x = heavy_tailed(n)
    codec, context = qsgd_of(levels, bucket), context_of(n)
    payload = codec.encode(x, context)
    norms = np.repeat(np.linalg.norm(np.pad(x, (0, -n % bucket)).reshape(-1, bucket), axis=1), bucket)[:n]
    level = np.rint(np.abs(codec.decode(payload, context)) * levels / norms).astype(int)
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


@pytest.mark.parametrize("codec", every_codec("values"), ids=lambda codec: codec.name)
def test_zeros_tiny_and_huge_values_survive(codec):
    huge = 60_000 if codec.exact else 1e30
    for x in (np.zeros(600), np.full(600, 1e-30), np.full(600, -huge), np.eye(1, 600)[0]):
        x = of_type(codec, x)
        decoded = sent(codec, x)
        assert decoded.dtype == x.dtype and np.isfinite(decoded.astype(np.float64)).all()
        assert x.any() or not decoded.any()


@INEXACT
def test_vectors_that_are_not_finite_are_the_senders_error(codec):
    with pytest.raises(ValueError, match="finite") as error:
        codec.encode(np.array([1, np.nan], np.float32), context_of(2))
    assert not isinstance(error.value, PayloadError)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bits", [0x7F80, 0x7F81, 0x7FC0, 0xFFBF])
def test_dense_infinities_and_quiet_and_signalling_nans_are_refused(bits):
    for vector in (
        np.array([bits], np.uint16).view(jnp.bfloat16),
        np.array([bits << 16], np.uint32).view(np.float32),
    ):
        codec = codecs.get("dense", dtype=str(vector.dtype))
        payload = codec.encode(vector, context_of(1))
        with pytest.raises(PayloadError, match="not finite"):
            codec.decode(payload, context_of(1))


def test_a_claim_of_many_levels_costs_no_memory():
    """Levels that Σ|v| ≤ r·√bucket forbids are refused before anything is allocated for them."""
    n = 600
    body = bytearray(qsgd._HEAD.pack(512, 255, 0)) + np.full(255, n, "<u4").tobytes() + bytes(4000)
    payload = envelope.pack(envelope.CODEC_IDS["qsgd"], 255, n, n, 1, 2, bytes(body))
    with pytest.raises(PayloadError, match="no rounding gives"):
        qsgd_of(255).decode(payload, context_of(n))


@pytest.mark.parametrize("levels", range(1, 256))
def test_qsgd_values_are_finite_for_every_level_count(levels):
    """s · (r / s) rounds to infinity for some s where r is the largest float."""
    codec, context, largest = qsgd_of(levels, 8), context_of(8), np.finfo(np.float32).max
    payload = bytearray(codec.encode(np.eye(1, 8, dtype=np.float32)[0], context))
    at = 32 + 6 + 4 * payload[36]
    for norm in (largest, 1.0, 1e-45):
        payload[at : at + 4] = np.float32(norm).tobytes()
        decoded = codec.decode(sealed(bytes(payload)), context)
        assert np.isfinite(decoded).all() and decoded[0] <= np.float32(norm)
        assert norm < 1e-30 or decoded[0] == pytest.approx(norm, rel=1e-6)
    for norm in (np.inf, np.nan, -1.0, -0.0, 0.0):
        payload[at : at + 4] = np.float32(norm).tobytes()
        with pytest.raises(PayloadError):
            codec.decode(sealed(bytes(payload)), context)


def test_signs_of_zero_have_one_payload():
    payload = bytearray(SIGNS.encode(np.zeros(16, np.float32), context_of(16)))
    assert not SIGNS.decode(bytes(payload), context_of(16)).any()
    payload[-1] = 1
    with pytest.raises(PayloadError, match="scale is 0"):
        SIGNS.decode(sealed(bytes(payload)), context_of(16))
    tiny = np.full(4096, -1e-45, np.float32) * (np.arange(4096) < 3)  # whose mean rounds to 0
    assert not sent(SIGNS, tiny).any()
