"""A real federation on Flower: its ServerApp plays the rounds, its ClientApps are cohorts of one.

    flwr run flower-app local --stream

docs/deployment.md begins with five commands. The server runs `experiment.run`, but asks a cohort over
Flower's wire (server.py); a client does what a simulated one does, alone (client.py). Payloads are the same
bytes and all randomness follows from (seed, round, client), so the rounds are those of the simulation.
"""

try:
    import flwr as _flwr  # noqa: F401
except ImportError:
    raise ImportError('deltamask_jax.flower needs Flower: pip install "deltamask_jax[flower]"') from None
