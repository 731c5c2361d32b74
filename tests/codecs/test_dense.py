"""Dense vectors: what is no number never arrives."""

import jax.numpy as jnp
import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import PayloadError
from tests.codecs.cases import context_of


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
