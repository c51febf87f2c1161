"""Launch modes: eager, CUDA graph, programmatic dependent launch; compiling ahead of the clock."""
