"""XOR-filter codec (Graf & Lemire, arXiv 1912.08258), an ablation of DeltaMask: 1.23 slots per
key."""

from deltamask_jax.codecs.codec import Codec
from deltamask_jax.codecs.filter_builder import build
from deltamask_jax.codecs.filter_codec import check_options, filter_codec
from deltamask_jax.codecs.fingerprints import xor_geometry


def xor(bits: int = 8, container: str = "png", capacity: int = 0) -> Codec:
    """Creates the codec.

    Args:
        bits: bits per entry, 8 or 16; the false-positive rate is 2**-bits.
        container: 'png', 'zstd' or 'raw'.
        capacity: key count that sets the geometry, see `bfuse`.

    Raises:
        ValueError: an option has another value.
    """
    check_options("xor", bits, (8, 16), container)
    return filter_codec(
        "xor",
        bits,
        3,
        container,
        capacity,
        window=False,
        geometry=xor_geometry,
        build=lambda positions, room: build(positions, bits, xor_geometry(room)),
    )
