"""Stochastic masks over frozen weights: DeltaMask (arXiv 2311.17299) §3, steps 1–4 of a round.

Each masked weight w has a logit s, a probability θ = sigmoid(s) and a bit m ~ Bernoulli(θ); the network
runs on m ⊙ w. While a client trains, θ is a float. Wherever both ends must agree it is the integer
θ16 = round(65536 θ), clamped to 0 … 65535, and a mask is an integer comparison: m = [u < θ16] with the
public uniforms u of `public_random`.
"""

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array | np.ndarray

SCALE = 65536  # θ16 and u16 count in units of 1/SCALE


def theta16(theta: Array) -> Array:
    """Probabilities f32[...] in 0 … 1 to the integers that travel, u16[...]. NumPy arrays stay NumPy.

    Example:
        >>> theta16(jnp.array([0.0, 0.25, 1.0])).tolist()
        [0, 16384, 65535]
    """
    xp = np if isinstance(theta, np.ndarray) else jnp
    return xp.clip(xp.round(theta * SCALE), 0, SCALE - 1).astype(xp.uint16)


def logits(theta: jax.Array, clip: float) -> jax.Array:
    """Start of local training: logits f32[...] of θ16 u16[...], θ held inside [clip, 1 − clip].

    At θ = 0 or 1 the gradient of the sigmoid is gone, so a weight there could never come back.
    """
    p = jnp.clip(theta.astype(jnp.float32) / SCALE, clip, 1 - clip)
    return jnp.log(p) - jnp.log1p(-p)


def draw(theta: Array, uniforms: Array) -> Array:
    """The mask both ends draw: bool[...] = [u < θ16], from u16[...] and u16[...]. NumPy arrays stay NumPy.

    Example:
        >>> draw(np.uint16([0, 20000, 65535]), np.uint16([0, 30000, 30000])).tolist()
        [False, False, True]
    """
    return uniforms < theta


def sample(theta: jax.Array, uniforms: jax.Array) -> jax.Array:
    """A client's private sample while it trains: bool[...] from float θ f32[...] and u16[...]."""
    return uniforms.astype(jnp.float32) < theta * SCALE


def above_half(theta: jax.Array, uniforms: jax.Array) -> jax.Array:
    """FedMask's mask: bool[...] = [θ > ½] from float θ f32[...]; the uniforms are not looked at."""
    return theta > 0.5


def least_kept(theta: np.ndarray) -> int:
    """The threshold of the mask that a device stores: weights of this θ16 and above stay, the others go.

    As many stay as in a drawn mask in the mean, Σθ of them, those with the highest θ, and ties with the last.
    At ½ hardly a weight would go where all start near 1: what was learnt would not be in the mask
    (docs/results.md). Edge-Popup (arXiv 1911.13299) keeps the highest scores, too; its share is a setting.

    Args:
        theta: u16[d].

    Example:
        >>> theta = np.uint16([60000, 60000, 50000, 40000])  # 3.2 of them stay in the mean
        >>> (theta >= least_kept(theta)).tolist()
        [True, True, True, False]
    """
    parts = np.array_split(theta, -(-theta.size // 2**22))  # each is widened to count it
    counts = sum((np.bincount(part, minlength=SCALE) for part in parts), np.zeros(SCALE, np.int64))
    expected = round(int(counts @ np.arange(SCALE)) / SCALE)
    at_or_above = np.cumsum(counts[::-1])[::-1]
    return int(np.flatnonzero(at_or_above >= expected)[-1])


def straight_through(grad: jax.Array, weights: jax.Array, theta: jax.Array) -> jax.Array:
    """Gradient of the loss in the logits, from the gradient in the masked weights m ⊙ w.

    The straight-through estimator takes ∂m/∂θ = 1 (Bengio et al., arXiv 1308.3432), hence
    ∂L/∂s = ∂L/∂(m w) · w · θ(1 − θ).

    Args:
        grad: f32[...], ∂L/∂(m ⊙ w).
        weights: frozen weights w, f32[...].
        theta: sigmoid of the logits, f32[...].

    Returns:
        ∂L/∂s, f32[...].
    """
    return grad * weights * theta * (1 - theta)


def straight_through_times_p(grad: jax.Array, weights: jax.Array, theta: jax.Array) -> jax.Array:
    """The same with ∂m/∂θ = θ, as FedPM's public code has it: ∂L/∂s = ∂L/∂(m w) · w · θ · θ(1 − θ).

    Arguments and result are f32[...], as of `straight_through`.
    """
    return straight_through(grad, weights, theta) * theta


def bernoulli_kl(theta_k: jax.Array, theta_g: jax.Array) -> jax.Array:
    """KL(θ_k ‖ θ_g) of two Bernoulli variables in nats, f32[...], from u16[...] integers.

    Half a unit is added so that the ends of the range stay finite. DeltaMask §3, step 4, ranks flips by it.
    """
    p = (theta_k.astype(jnp.float32) + 0.5) / (SCALE + 1)
    q = (theta_g.astype(jnp.float32) + 0.5) / (SCALE + 1)
    return p * jnp.log(p / q) + (1 - p) * (jnp.log1p(-p) - jnp.log1p(-q))


def top_kappa(flips: jax.Array, score: jax.Array, kappa: float | jax.Array) -> jax.Array:
    """Keep the ⌈κ·n⌉ highest-scored of n flips; ties go to the lower position. Less than 1e-4 above a whole
    number κ·n counts as that number: float32 knows it no better.

    A bisection over the bit patterns of the scores (31 counting passes over d or fewer) instead of a sort of
    d; it ends at the first threshold that exactly ⌈κ·n⌉ scores reach.

    Args:
        flips: bool[d].
        score: f32[d]; only its values where `flips` count. Negative values rank as zero.
        kappa: fraction kept, 0 … 1; may be traced.

    Returns:
        bool[d], a subset of `flips`.
    """
    count = jnp.sum(flips)
    keep = jnp.ceil(kappa * count - 1e-4).astype(jnp.int32)
    return jax.lax.cond(keep < count, _highest, lambda flips, *_: flips, flips, score, keep)


def _highest(flips: jax.Array, score: jax.Array, keep: jax.Array) -> jax.Array:
    """The `keep` highest-scored flips, bool[d]."""
    # Non-negative floats compare like their bit patterns; −1 marks positions that did not flip.
    rank = jax.lax.bitcast_convert_type(jnp.maximum(score, 0.0), jnp.int32)
    rank = jnp.where(flips, rank, -1)

    def unsettled(bounds):
        low, high, reach = bounds
        return (reach != keep) & (high - low > 1)

    def halve(bounds):  # invariant: reach = count(rank ≥ low) ≥ keep > count(rank ≥ high)
        low, high, reach = bounds
        middle = low + (high - low) // 2
        count = jnp.sum(rank >= middle)
        enough = count >= keep
        return (
            jnp.where(enough, middle, low),
            jnp.where(enough, high, middle),
            jnp.where(enough, count, reach),
        )

    def settle_ties():
        above, tied = rank > low, rank == low
        return above | (tied & (jnp.cumsum(tied) <= keep - jnp.sum(above)))

    start = (jnp.int32(0), jnp.int32(np.iinfo(np.int32).max), jnp.sum(flips))
    low, _, reach = jax.lax.while_loop(unsettled, halve, start)
    return jax.lax.cond(reach == keep, lambda: rank >= low, settle_ties)


def client_flips(
    theta_k: jax.Array,
    theta_g: jax.Array,
    uniforms: jax.Array,
    kappa: float | jax.Array,
    score: jax.Array | None = None,
) -> jax.Array:
    """Step 3–4: flips between the client's mask and the global one, the top κ of them.

    Args:
        theta_k, theta_g, uniforms: u16[d].
        kappa: fraction kept, 0 … 1.
        score: what ranks the flips, f32[d]; by default KL(θ_k ‖ θ_g).

    Returns:
        bool[d].
    """
    flips = draw(theta_k, uniforms) != draw(theta_g, uniforms)
    return top_kappa(flips, bernoulli_kl(theta_k, theta_g) if score is None else score, kappa)
