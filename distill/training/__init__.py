"""How networks are trained: students, augmentation, whitening, matching, stored labels, protocols."""
