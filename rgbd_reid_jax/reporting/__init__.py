"""What a person reads after an evaluation: the terminal table and the self-contained HTML report."""
