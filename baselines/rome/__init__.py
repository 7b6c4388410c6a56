"""ROME and its plain form IDM, and C2R: a pool of networks of all ages."""
