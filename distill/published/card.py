"""The dataset card of an exported set: README.md with the front matter that the Hugging Face Hub reads."""

import json
from pathlib import Path

from distill.data import facts_named
from distill.distilled import DistilledSet
from distill.runs.foreign import read_text
from distill.runs.own_files import read_record

__all__ = ["card"]

UNKNOWN = "The licence of the real images is not known to this program; state it before you share the set."
CITATION = """\
@inproceedings{xue2025guard,
  title     = {Towards Adversarially Robust Dataset Distillation by Curvature Regularization},
  author    = {Xue, Eric and Li, Yijiang and Liu, Haoyang and Wang, Peiran and Shen, Yifan and Wang, Haohan},
  booktitle = {Proceedings of the AAAI Conference on Artificial Intelligence},
  year      = {2025},
}"""


def card(distilled: DistilledSet, folder: Path, use: str, configs: str = "") -> str:
    """Return the text of README.md.

    Args:
        distilled: the set.
        folder: of its run; its table and its commit are quoted where it has them.
        use: Python that reads the exported files.
        configs: further lines of the front matter.

    Returns:
        the card: front matter, what the set is, results, use, licence, citation.
    """
    facts = facts_named(distilled.dataset)
    images, size = len(distilled.labels), distilled.images.shape[-1]
    labels = "soft labels" if distilled.labels.ndim == 2 else "hard labels"
    by = f" made by `{distilled.method}`" if distilled.method else ""
    made_by = (read_record(folder) or {}).get("made_by") or {}
    commit = f", commit {made_by['commit']}" if made_by.get("commit") else ""
    teacher = f" The labels are those of a teacher trained by {distilled.teacher}." if distilled.teacher else ""
    title = f"{distilled.dataset}, distilled by {distilled.method or '?'}"
    front = [
        "---",
        f"license: {facts.licence}",
        "task_categories: [image-classification]",
        f"pretty_name: {json.dumps(title)}",
        f"size_categories: [{'n<1K' if images < 1000 else '1K<n<10K' if images < 10_000 else '10K<n<100K'}]",
        "tags: [dataset-distillation, adversarial-robustness]",
        *configs.splitlines(),
        "---",
    ]
    text = f"""
# {distilled.dataset}, distilled

{images} images of {size} x {size} pixels in {len(distilled.classes)} classes with {labels},{by} from
{distilled.dataset} by guard-distillation {distilled.version or "(version unknown)"}{commit}. Networks of kind
`{distilled.backbone}` train on them instead of on the whole training set; normalise pixels with mean
{_numbers(distilled.mean)} and std {_numbers(distilled.std)}.{teacher}

## Results

{_results(folder)}

## Use

```python
{use}
```

## Licence of the real images

{facts.terms or UNKNOWN}

## Citation

```
{CITATION}
```
"""
    return "\n".join(front) + "\n" + text


def _numbers(values: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.4g}" for value in values) + ")"


def _results(folder: Path) -> str:
    """Return the table of the run."""
    try:
        table = read_text(folder / "table.md").strip()
    except (OSError, ValueError):
        return "Students were not evaluated here."
    about = "Accuracy of students in percent, mean ± standard deviation over n students; attacks with their radius."
    return f"{about}\n\n{table}"
