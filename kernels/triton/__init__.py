"""Triton kernels: one warp streams sixteen rows, a thread's group of weights is one 16-byte load, products run on the
tensor cores whatever the format. docs/kernels-triton.md is the lesson; `make ptx` prints what they compile to."""
