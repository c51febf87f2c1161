"""Estimate closed models from served tokens/s: priors, inversion, back-tests, public claims."""
