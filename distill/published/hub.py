"""A set as a repository of the Hugging Face Hub: Parquet that `load_dataset` opens, the exact file, a dataset card."""

from pathlib import Path
from typing import Any

from torch import Tensor

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.published.card import card
from distill.published.whole import write_whole

__all__ = ["as_pictures", "datasets_for", "write_hub"]

PARQUET = "data/train-00000-of-00001.parquet"
CONFIGS = """\
configs:
  - config_name: default
    data_files:
      - split: train
        path: data/train-*.parquet"""
USE = """\
from datasets import load_dataset

images = load_dataset("PATH OR NAME OF THIS REPOSITORY", split="train")
print(images.features["label"].names, images[0]["image"], images[0]["label"])"""


def datasets_for(form: str) -> Any:
    """Return the package datasets without its progress bars: an optional dependency that is slow to import.

    Args:
        form: the export that needs it.

    Raises:
        InputError: the package is missing.
    """
    try:
        import datasets
    except ImportError:
        raise InputError(
            f"export to {form} needs the package datasets: pip install datasets; or use --to npz"
        ) from None
    datasets.disable_progress_bars()
    return datasets


def as_pictures(images: Tensor) -> list[Any]:
    """Return images (N, C, H, W) as pictures of PIL, 8 bits, cut to [0, 1]."""
    from torchvision.transforms.v2.functional import to_pil_image

    return [to_pil_image((image.clamp(0, 1) * 255).round().byte()) for image in images]


def write_hub(distilled: DistilledSet, folder: Path, out: Path) -> list[str]:
    """Write README.md, data/*.parquet, distilled.safetensors and what it names (`write_whole`).

    The columns of the table: `image` (PNG of 8 bits), `label` (with the names of the classes), and `soft_label` where
    labels are probabilities; `label` is `DistilledSet.image_classes`.

    Returns:
        messages for the user.

    Raises:
        InputError: the package datasets, or a part of the set, is missing.
    """
    datasets = datasets_for("hub")
    images, labels = distilled.images[:], distilled.labels
    features: dict[str, Any] = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(distilled.classes))}
    columns: dict[str, Any] = {
        "image": as_pictures(images),
        "label": distilled.image_classes.tolist(),
    }
    if labels.ndim == 2:
        features["soft_label"] = datasets.Sequence(datasets.Value("float32"), length=labels.shape[1])
        columns["soft_label"] = labels.tolist()
    (out / PARQUET).parent.mkdir(parents=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(str(out / PARQUET))
    whole = write_whole(distilled, folder, out)
    (out / "README.md").write_text(card(distilled, folder, USE, CONFIGS), encoding="utf-8")
    outside = ((images < 0) | (images > 1)).double().mean().item()
    return [
        f"hub: column image has 8 bits ({outside:.1%} of the values are outside [0, 1]); distilled.safetensors is "
        "exact",
        *whole,
        "hub: upload, in the folder: hf upload NAME . --repo-type dataset",
    ]
