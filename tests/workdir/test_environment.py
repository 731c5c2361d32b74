"""A jax that would make another run of the same seed is refused; what runs, and on what, is written down."""

import jax
import pytest

from deltamask_jax.workdir import environment


@pytest.mark.parametrize(
    "flag, value",
    [
        ("jax_enable_x64", True),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_numpy_rank_promotion", "raise"),
        ("jax_threefry_partitionable", False),
        ("jax_default_prng_impl", "rbg"),
        ("jax_random_seed_offset", 3),
    ],
)
def test_flags_that_change_types_or_randomness_are_refused(flag, value):
    environment.check()
    usual = getattr(jax.config, flag)
    jax.config.update(flag, value)
    try:
        with pytest.raises(ValueError, match=f"^{flag.upper()}={value} changes .* unset it"):
            environment.check()
    finally:
        jax.config.update(flag, usual)


def test_flags_that_only_change_results_a_little_are_written_down():
    assert "JAX_DEBUG_NANS" not in environment.describe()
    with jax.debug_nans(True):
        environment.check()
        assert environment.describe()["JAX_DEBUG_NANS"] is True


@pytest.mark.parametrize(
    "error", [AssertionError(), RuntimeError("Unable to initialize backend\nlong story")]
)
def test_a_platform_that_is_not_there_is_named(monkeypatch, error):
    def devices():
        raise error

    monkeypatch.setattr(jax, "devices", devices)
    with pytest.raises(ValueError, match="^jax cannot start .JAX_PLATFORMS: ") as caught:
        environment.check()
    assert "\n" not in str(caught.value)


def test_a_platform_that_hides_the_cpu_is_refused(monkeypatch):
    """As where JAX_PLATFORMS=cuda on a machine with a GPU."""

    def local_devices(backend=None):
        if backend == "cpu":
            raise RuntimeError("Unknown backend cpu")
        return jax.devices()

    monkeypatch.setattr(jax, "local_devices", local_devices)
    monkeypatch.setattr(type(jax.config), "jax_platforms", "cuda")
    with pytest.raises(ValueError, match="^JAX_PLATFORMS=cuda hides the CPU .*: use JAX_PLATFORMS=cuda,cpu$"):
        environment.check()


def test_environment_names_versions_and_the_commit():
    found = environment.describe()
    assert found["deltamask_jax"] and found["jax"] and found["cpu_cores"] >= 1
    assert found["commit"] is None or len(found["commit"].rstrip("+")) == 40
