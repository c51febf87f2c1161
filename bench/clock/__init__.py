"""Timing: pairs of a step and the read roof, rounds of several programs, launch floors, statistics."""
