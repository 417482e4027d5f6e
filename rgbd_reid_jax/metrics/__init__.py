"""Ranking and verification metrics of saved embeddings (NumPy, float64, no accelerator)."""
