"""Names are looked up, or refused with the nearest."""

import pytest

from deltamask_jax.registry import look_up


def test_a_name_is_found_or_refused_with_the_nearest():
    table = {"rice": 1, "bloom": 2}
    assert look_up("codec", "rice", table) == 1
    with pytest.raises(ValueError, match=r"unknown codec 'ricee'; did you mean 'rice'\? Valid: bloom, rice"):
        look_up("codec", "ricee", table)
    with pytest.raises(ValueError, match="unknown codec 'zzz'. Valid: bloom, rice"):
        look_up("codec", "zzz", table)
