"""C2R: a curriculum by robust margins, and a contrast of clean and attacked images, in the pool of ROME."""
