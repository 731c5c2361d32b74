"""What a run looks like, while it goes on and afterwards. Nothing the run wrote is computed again."""
