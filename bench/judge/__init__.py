"""Measured against predicted, one record against another, one launch mode against another."""
