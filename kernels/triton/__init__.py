"""The Triton backend for NVIDIA GPUs: kernels, lowering, launch modes, compile reports."""
