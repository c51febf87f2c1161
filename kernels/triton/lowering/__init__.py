"""From a step program to launches: configurations, register budgets, matrix order, arena."""
