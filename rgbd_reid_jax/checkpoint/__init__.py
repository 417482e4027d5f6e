"""Checkpoints: the one place that knows Orbax."""
