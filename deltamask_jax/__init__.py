"""Federated fine-tuning of foundation models at hundredths of a bit per parameter."""

__version__ = "0.1.0"
