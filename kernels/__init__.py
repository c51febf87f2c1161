"""Kernels of a decode step: packers, float64 reference, compiled CPU core, Triton.

Never imports `moegauge.counting`.
"""
