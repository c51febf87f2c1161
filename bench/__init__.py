"""Measure decode steps and the read roof, hold records against the law, and write reports."""
