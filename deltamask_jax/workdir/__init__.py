"""A run's folder: whose it is (claim), what was played (journal), files that are whole or absent (files)."""
