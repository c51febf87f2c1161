"""The CPU backend: compiled core loaded by ctypes, its structs, its order of matrices."""
