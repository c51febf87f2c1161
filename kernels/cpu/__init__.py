"""The compiled CPU core seen from Python: loading, structures, matrix order, the backend."""
