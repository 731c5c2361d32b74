"""A run's folder: whose it is (claim), what was played (journal, checkpoint), whole files (files)."""
