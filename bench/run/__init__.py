"""Measuring the points of a plan: sweep, cases of a record, launches of a step."""
