"""The ServerApp."""

from deltamask_jax.flower.server import app

__all__ = ["app"]
