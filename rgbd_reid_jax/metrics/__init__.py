"""Ranking and verification of saved embeddings: exact, seeded, on any device."""
