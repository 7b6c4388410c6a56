"""A set as a repository of the Hugging Face Hub: Parquet that `load_dataset` opens, the exact file, a dataset card."""

from pathlib import Path
from typing import Any

from distill.distilled import DistilledSet
from distill.errors import InputError
from distill.published.card import card

__all__ = ["write_hub"]

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


def write_hub(distilled: DistilledSet, folder: Path, out: Path) -> list[str]:
    """Write README.md, data/*.parquet and distilled.safetensors.

    The columns of the table: `image` (PNG of 8 bits), `label` (with the names of the classes), and `soft_label` where
    labels are probabilities; then `label` is the most probable class.

    Returns:
        messages for the user.

    Raises:
        InputError: the package datasets is missing.
    """
    try:
        import datasets  # an optional dependency that is slow to import
    except ImportError:
        raise InputError("export to hub needs the package datasets: pip install datasets; or use --to npz") from None
    from torchvision.transforms.v2.functional import to_pil_image

    images, labels = distilled.images[:], distilled.labels
    classes = labels if labels.ndim == 1 else labels.argmax(1)
    features: dict[str, Any] = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(distilled.classes))}
    columns: dict[str, Any] = {
        "image": [to_pil_image((image.clamp(0, 1) * 255).round().byte()) for image in images],
        "label": classes.tolist(),
    }
    if labels.ndim == 2:
        features["soft_label"] = datasets.Sequence(datasets.Value("float32"), length=labels.shape[1])
        columns["soft_label"] = labels.tolist()
    datasets.disable_progress_bars()
    (out / PARQUET).parent.mkdir(parents=True)
    table = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    table.to_parquet(str(out / PARQUET))
    distilled.save(out / "distilled.safetensors")
    (out / "README.md").write_text(card(distilled, folder, USE, CONFIGS), encoding="utf-8")
    outside = ((images < 0) | (images > 1)).double().mean().item()
    return [
        f"hub: column image has 8 bits ({outside:.1%} of the values are outside [0, 1]); distilled.safetensors is "
        "exact",
        f"hub: upload with: hf upload NAME {out.name} --repo-type dataset",
    ]
