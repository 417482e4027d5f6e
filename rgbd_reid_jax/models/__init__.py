"""Flax Linen networks. The only package that imports Flax layers; the rest sees functions and pytrees."""
