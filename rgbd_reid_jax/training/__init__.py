"""One training loop, and the objectives of its stages."""
