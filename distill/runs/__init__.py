"""A run's folder and its files: randomness, checkpoints, locks, scalars, several processes, progress."""
