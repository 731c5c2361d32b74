"""The ClientApp."""

from deltamask_jax.flower.client import app

__all__ = ["app"]
