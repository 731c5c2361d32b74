"""Binary-fuse-filter codec: DeltaMask's own (arXiv 2311.17299, section 3.2).

Flips are inserted in a binary fuse filter (Graf & Lemire, arXiv 2201.01174); the fingerprint array
travels as a grayscale image, and the receiver queries all d positions.
"""

from deltamask_jax.codecs.codec import Codec
from deltamask_jax.codecs.filter_builder import build
from deltamask_jax.codecs.filter_codec import check_options, filter_codec
from deltamask_jax.codecs.fingerprints import fuse_geometry


def bfuse(
    bits: int = 8, arity: int = 3, container: str = "png", capacity: int = 0, window: bool = False
) -> Codec:
    """Creates the codec.

    Args:
        bits: bits per entry, 8, 16 or 32; the false-positive rate is 2**-bits.
        arity: slots per key, 3 or 4 (4 is 4 % smaller and slower to build).
        container: 'png', 'zstd' or 'raw'.
        capacity: key count that sets the geometry, so that a cohort shares it and is decoded at
            once. 0: each payload's own n, the smallest. Payloads with more keys fall back to
            their own n.
        window: also send the largest distance of a flip's uniform from θ_g (2 bytes), and drop
            decoded positions beyond it, which are false: several times fewer false flips. The
            context must hold theta and a stream, and cohorts are decoded client by client.

    Raises:
        ValueError: an option has another value.
    """
    check_options("bfuse", bits, (8, 16, 32), container)
    if arity not in (3, 4):
        raise ValueError(f"bfuse: arity must be 3 or 4, got {arity}")
    return filter_codec(
        "bfuse",
        bits,
        arity,
        container,
        capacity,
        window,
        geometry=lambda room: fuse_geometry(room, arity),
        build=lambda positions, room: build(positions, bits, fuse_geometry(room, arity)),
    )
