"""How networks are trained: students, augmentation, whitening, matching, protocols."""
