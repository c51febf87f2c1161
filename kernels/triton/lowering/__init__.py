"""Lower a step program to Triton launches: configurations, registers, matrix order, arena."""
