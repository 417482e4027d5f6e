"""Trained encoders as StableHLO files that need nothing but JAX to run."""
