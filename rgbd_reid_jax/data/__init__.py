"""From TFDS ArrayRecord files to normalised batches: reading, representation, augmentation."""
