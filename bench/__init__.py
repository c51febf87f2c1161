"""Timing, roof, decode step, sweep, compare, report."""
