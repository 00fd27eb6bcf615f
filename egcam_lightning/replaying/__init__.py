"""Runs that are over: their checkpoints in, the history that the callback would have left out."""
