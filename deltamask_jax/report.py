"""Command: python -m deltamask_jax.report runs/quickstart (reporting/report.py)"""

from deltamask_jax.reporting.report import main

if __name__ == "__main__":
    main()
