"""Batches and loaders in; fixed images, their targets and baselines out."""
