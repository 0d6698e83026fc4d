"""A run's folder: lock, checkpoints, records and loggers."""
