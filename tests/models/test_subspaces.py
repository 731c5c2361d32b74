"""Subspaces of low-rank updates: the formulas by hand, what is shared evenly, and that means are exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from deltamask_jax.flat_index import FlatIndex
from deltamask_jax.models import adapters, subspaces
from deltamask_jax.public_random import stream_key
from tests.models.test_adapters import ARCHITECTURE, BLOCKS, KEY, TOKENS, whole

QUERY, OUT, MLP = (
    f"Transformer/encoderblock_1/{name}"
    for name in (
        "MultiHeadDotProductAttention_0/query",
        "MultiHeadDotProductAttention_0/out",
        "MlpBlock_0/Dense_0",
    )
)


def spaces():
    model, params = whole()
    index = FlatIndex.create(params, ARCHITECTURE.masked_pattern(2))
    return (
        model,
        params,
        {
            "square": subspaces.square(KEY, index, 3),
            "shared": subspaces.shared(KEY, params, BLOCKS, 2, 50),
        },
    )


def grown(params, space, trained):
    return traverse_util.flatten_dict(adapters.grow(params, space.expand(space.frozen, trained)), sep="/")


def drawn(space, seed):
    rng = np.random.default_rng(seed)
    return {path: rng.normal(size=x.shape).astype(np.float32) for path, x in space.trained.items()}


def test_square_adds_the_product_of_three_to_every_kernel():
    model, params, kinds = spaces()
    space, flat = kinds["square"], traverse_util.flatten_dict(params, sep="/")
    assert len(space.trained) == 2 * 6  # query, key, value, out and both of the MLP, in two blocks
    trained = drawn(space, 0)
    after = grown(params, space, trained)
    for name, shape in ((QUERY, (16, 16)), (OUT, (16, 16)), (MLP, (16, 24))):
        a, b, r = space.frozen[f"{name}/lora_a"], space.frozen[f"{name}/lora_b"], trained[f"{name}/square"]
        assert (a.shape, b.shape) == ((shape[0], 3), (3, shape[1]))
        change = (np.asarray(after[f"{name}/kernel"]) - flat[f"{name}/kernel"]).reshape(shape)
        np.testing.assert_allclose(change, a @ r @ b, atol=1e-5)
    untouched = after.keys() - {f"{name.removesuffix('/square')}/kernel" for name in trained}
    assert all(after[path] is flat[path] for path in untouched)


def test_squares_factors_are_nearly_orthonormal_and_independent():
    params = {
        "Transformer": {"encoderblock_0": {"MlpBlock_0": {"Dense_0": {"kernel": np.zeros((400, 900))}}}}
    }
    space = subspaces.square(KEY, FlatIndex.create(params, ".*"), 8)
    a, b = space.frozen.values()
    for product in (a.T @ a, b @ b.T):
        np.testing.assert_allclose(product, np.eye(8), atol=0.25)
    assert abs(np.corrcoef(a.ravel(), b.ravel()[: a.size])[0, 1]) < 0.06


def test_the_mean_of_squares_is_the_mean_of_the_updates():
    """Unlike LoRA's two factors, whose means multiply to something else."""
    _, params, kinds = spaces()
    space = kinds["square"]
    clients = [drawn(space, seed) for seed in (1, 2, 3)]
    mean = jax.tree.map(lambda *xs: sum(xs) / 3, *clients)
    each = [grown(params, space, trained)[f"{MLP}/kernel"] for trained in clients]
    np.testing.assert_allclose(grown(params, space, mean)[f"{MLP}/kernel"], sum(each) / 3, atol=1e-5)


def test_shared_deals_one_vector_out_evenly_and_keeps_lengths():
    _, params, kinds = spaces()
    space, values = kinds["shared"], np.arange(1, 51, dtype=np.float32)
    parts = space.expand(space.frozen, {"shared": values})
    entries = np.concatenate([np.ravel(part) for part in parts.values()])
    assert entries.size == 2 * 2 * 2 * (16 * 2)  # blocks, query and value, two factors
    shares = np.bincount(space.frozen["owner"], minlength=50)
    assert set(shares) == {5, 6} and shares.sum() == 256
    by_hand = [values[j] / np.sqrt(shares[j]) for j in space.frozen["owner"]]
    np.testing.assert_allclose(entries, by_hand, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(entries), np.linalg.norm(values), rtol=1e-5)  # PᵀP = I
    assert parts[f"{QUERY}/lora_a"].shape == (16, 2) and parts[f"{QUERY}/lora_b"].shape == (2, 16)
    later = space.frozen["owner"].reshape(8, 32)  # who owns what does not depend on the place
    assert len({tuple(row % 50) for row in later}) == 8


@pytest.mark.parametrize("kind", ["square", "shared"])
def test_at_first_the_network_is_nearly_the_pretrained_one_and_every_number_has_a_slope(kind):
    model, params, kinds = spaces()
    space = kinds[kind]

    def outputs(trained):
        return model.suffix(adapters.grow(params, space.expand(space.frozen, trained)), TOKENS)

    np.testing.assert_allclose(outputs(space.trained), model.suffix(params, TOKENS), atol=1e-2)
    slopes = jax.jit(jax.grad(lambda trained: jnp.square(outputs(trained)[:, 0]).sum()))(space.trained)
    assert np.mean([np.mean(slope != 0) for slope in slopes.values()]) > 0.8


def test_the_frozen_part_follows_from_the_seed():
    _, params, kinds = spaces()
    for kind, again in spaces()[2].items():
        jax.tree.map(np.testing.assert_array_equal, kinds[kind][:2], again[:2])
    other = subspaces.shared(stream_key(1, 0, 0, 0), params, BLOCKS, 2, 50)
    assert (other.frozen["owner"] != kinds["shared"].frozen["owner"]).any()


def test_sizes_that_do_not_fit_are_refused():
    _, params, _ = spaces()
    with pytest.raises(ValueError, match=r"peft.fedsb_rank=17: the smallest kernel has 16"):
        subspaces.square(KEY, FlatIndex.create(params, ARCHITECTURE.masked_pattern(2)), 17)
    with pytest.raises(ValueError, match=r"peft.unilora_size=257: LoRA's factors have only 256"):
        subspaces.shared(KEY, params, BLOCKS, 2, 257)
