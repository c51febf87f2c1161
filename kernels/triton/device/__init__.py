"""Triton kernels: what runs on the GPU, and nothing else."""
