"""Triton kernels and the functions they share: the code that runs on the GPU, and nothing else."""
