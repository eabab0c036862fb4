"""What logging costs, and what the log does with a million predictions."""
