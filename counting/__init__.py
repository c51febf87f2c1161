"""Checkpoint to headers to roles to logical parameters to `ModelShape`. Imports no torch."""
