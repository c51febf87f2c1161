"""The smallest kernels that move the bytes of a decode step. Never imports `moegauge.counting`."""
