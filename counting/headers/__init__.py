"""Safetensors headers: parsed fast, checked strictly, told from files of other kinds."""
