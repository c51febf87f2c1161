"""Launch modes: eager, CUDA graph, programmatic dependent launch, persistent; compiling ahead of the clock."""
