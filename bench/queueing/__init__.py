"""A queueing model of one GPU multiprocessor, which predicts the time of a decode step before a device runs it."""
