"""Checkpoints on disk: read tensor by tensor, overlaid by deltas, selected by scope, loaded into a model."""
