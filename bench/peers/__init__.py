"""Other programs' kernels and decode steps (vLLM, SGLang, llama.cpp, PyTorch), timed in the same run."""
