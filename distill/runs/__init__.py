"""A run's folder, and all that processes share: files, checkpoints, locks, ranks, progress."""
