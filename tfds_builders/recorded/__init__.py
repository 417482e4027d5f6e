"""What builders of datasets that real cameras recorded share: frames in a tree, reading, cropping, converting."""
