"""The values that are kept of a run, and their one form in memory, in checkpoints and on disk."""
