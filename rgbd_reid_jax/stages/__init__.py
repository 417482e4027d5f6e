"""The named, resumable stages of a run; `table.STAGES` lists them."""
