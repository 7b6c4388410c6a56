"""Two classes of 8 x 8 images that a small network tells apart: bright above, bright below."""

from pathlib import Path

import torch
from PIL import Image

from distill.data import ImageSet


def toy(n: int = 40, channels: int = 3, seed: int = 0) -> ImageSet:
    """Return n images, classes alternating."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.5 * torch.rand(n, channels, 8, 8, generator=generator)
    labels = torch.arange(n) % 2
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * label : 4 * label + 4] += 0.4
    return ImageSet("toy", images, labels, ("above", "below"), (0.4,) * channels, (0.25,) * channels)


def write_toy(root: Path) -> Path:
    """Write the toy set as a folder of PNGs with train/ and val/; return the root."""
    for part, seed in (("train", 0), ("val", 1)):
        data = toy(seed=seed)
        for number, (image, label) in enumerate(zip(data.images, data.labels.tolist(), strict=True)):
            path = root / part / data.classes[label] / f"{number:03d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255).byte().permute(1, 2, 0).numpy()).save(path)
    return root
