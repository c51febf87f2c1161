"""What a user would pick instead of this kit's kernels and steps, one file per peer, timed in the same run."""
