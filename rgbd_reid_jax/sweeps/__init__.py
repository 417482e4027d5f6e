"""Many runs as one experiment: methods x seeds, one row per run, tables with intervals (docs/sweep.md)."""
