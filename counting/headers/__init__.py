"""One safetensors header: parsed fast, refused strictly, told from files that are something else."""
