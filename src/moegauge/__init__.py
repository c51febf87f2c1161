"""moegauge: count an MoE checkpoint exactly, measure what decoding it costs, say how far the law carries.

Importing this package imports no torch, no triton and touches no device.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
