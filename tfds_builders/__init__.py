"""TFDS builders of RGB-D person re-identification datasets, all with the features of `schema`."""
