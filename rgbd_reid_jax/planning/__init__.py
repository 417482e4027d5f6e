"""Capacity planning: what a training step needs of a slice of accelerators, from its compiled program alone."""
