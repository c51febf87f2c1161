"""Measure the points of a plan: sweep over them, entries of a record, launches of a kernel case."""
