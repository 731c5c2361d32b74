"""Scaled signs: bytes, zeros, padding."""

import numpy as np
import pytest

from deltamask_jax import codecs
from deltamask_jax.codecs import PayloadError
from tests.codecs.cases import context_of, heavy_tailed, sealed, sent

SIGNS = codecs.get("signs")


def test_signs_send_a_bit_a_value_and_32_a_bucket():
    assert len(SIGNS.encode(heavy_tailed(10_001), context_of(10_001))) == 32 + 4 * 3 + 1251


def test_signs_of_zero_have_one_payload():
    payload = bytearray(SIGNS.encode(np.zeros(16, np.float32), context_of(16)))
    assert not SIGNS.decode(bytes(payload), context_of(16)).any()
    payload[-1] = 1
    with pytest.raises(PayloadError, match="scale is 0"):
        SIGNS.decode(sealed(bytes(payload)), context_of(16))
    tiny = np.full(4096, -1e-45, np.float32) * (np.arange(4096) < 3)  # whose mean rounds to 0
    assert not sent(SIGNS, tiny).any()
