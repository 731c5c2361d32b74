"""The part of Fashion-MNIST that the package carries: 3,000 images of 28 × 28, no download.

Xiao, Rasul and Vollgraf, arXiv 1708.07747; MIT licence (assets/fashion.LICENSE). Made by
launch/embed_fashion.py.
"""

from pathlib import Path

from deltamask_jax.data import arrays
from deltamask_jax.data.dataset import Dataset

FILE = Path(__file__).parents[1] / "assets" / "fashion.npz"


def load() -> Dataset:
    """2,000 training and 1,000 test examples of ten classes, equally many of each."""
    return arrays.load_npz(FILE)
