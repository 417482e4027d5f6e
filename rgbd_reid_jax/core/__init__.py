"""What every other package may use: errors, files, progress, the device mesh."""
