"""Evaluation protocols: a name, what it means, its parameters, and the numbers it gives for two sets of embeddings."""
