"""Synthetic RGB-D person re-identification: procedural people before simulated cameras."""
