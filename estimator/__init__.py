"""ModelShape to bytes per step to tokens/s, forward and backward. Imports no torch."""
