import numpy as np
import pytest

from deltamask_jax.pretrained import positions

TABLE = np.random.default_rng(0).normal(size=(1, 37 * 37 + 1, 5)).astype(np.float32)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("side", [6, 16, 36, 40])
def test_resize_equals_torch_bicubic(side, antialias):
    torch = pytest.importorskip("torch")
    grid = torch.from_numpy(TABLE[:, 1:]).double().reshape(1, 37, 37, 5).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(
        grid, size=(side, side), mode="bicubic", align_corners=False, antialias=antialias
    )
    expected = expected.permute(0, 2, 3, 1).reshape(1, side * side, 5).numpy()
    resized = positions.resize(TABLE, side * side + 1, extra=1, antialias=antialias)
    np.testing.assert_allclose(resized[:, 1:], expected, atol=1e-6)
    np.testing.assert_array_equal(resized[:, :1], TABLE[:, :1])


def test_same_grid_is_untouched_and_constants_stay_constant():
    assert positions.resize(TABLE, TABLE.shape[1], extra=1) is TABLE
    resized = positions.resize(np.full((1, 49, 2), 3, np.float32), 25, extra=0)
    np.testing.assert_allclose(resized, 3, rtol=1e-6)


def test_other_than_square_grids_are_refused():
    with pytest.raises(ValueError, match="not square"):
        positions.resize(TABLE, 8, extra=1)


@pytest.mark.parametrize("rows, tokens", [(1, 5), (0, 5), (5, 1), (5, 0)])
def test_grids_without_a_patch_are_refused(rows, tokens):
    with pytest.raises(ValueError, match="not square"):
        positions.resize(np.zeros((1, rows, 2), np.float32), tokens, extra=1)
