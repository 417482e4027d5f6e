"""TVRID: people from above, before four RGB-D cameras on flat ground and slopes (ICPR 2026)."""
