"""What is measured: points, suites, the staged GPU suite and its time budget, the plan of `validate`."""
