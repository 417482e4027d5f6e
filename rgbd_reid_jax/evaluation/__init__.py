"""From frames to embeddings, and from embeddings to results."""
