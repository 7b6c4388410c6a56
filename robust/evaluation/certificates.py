"""Randomised smoothing: certificates of L2 robustness (Cohen, Rosenfeld & Kolter 2019, arXiv 1902.02918).

The smoothed classifier predicts the class that the model predicts most often for x + sigma N(0, 1). If that class has
probability p >= p_lower > 1/2, every image nearer than sigma Phi^-1(p_lower) to x has the same prediction. p_lower is
the exact lower confidence bound of Clopper and Pearson, so each certificate is wrong with probability alpha at most.
Certificates hold for the smoothed classifier, not for the model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.network.batches import images_at_once
from robust.network.modes import Model, evaluating
from robust.per_example import streams
from robust.ranges import Count, Inside01, Positive, check_number

__all__ = ["Certificate", "certified", "certify", "lower_bound", "smoothed_predict"]

ABSTAIN = -1
NOISY = 1000
"""noisy images of a pass, at most"""


@dataclass(frozen=True, eq=False)
class Certificate:
    """Certified predictions: each certificate is wrong with probability alpha at most."""

    prediction: Tensor
    """(N,) classes; -1 where the smoothed classifier abstains"""
    radius: Tensor
    """(N,) L2 radius in pixels of [0, 1], float64; 0 where it abstains"""


def certify(
    model: Model,
    images: Tensor,
    *,
    sigma: float,
    n0: int = 100,
    n: int = 1000,
    alpha: float = 0.001,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Certificate:
    """Return certificates by CERTIFY of the paper: n0 draws choose the class, n others bound its probability.

    Args:
        model: maps pixels (N, ...) to logits (N, K), K >= 2, normalisation inside; in evaluation mode meanwhile.
        images: (N, ...) pixels in [0, 1]; the noise is not clamped.
        sigma: standard deviation of the noise, > 0, pixels in [0, 1].
        n0: draws that choose the class, >= 1.
        n: draws that bound its probability, >= 1; no radius is above sigma Phi^-1(alpha^(1/n)).
        alpha: probability of a wrong certificate, in (0, 1).
        batch_size: noisy images of one pass, >= 1; None follows from the network (see `robust.network.batches`), at
            most 1000. The draws do not depend on it.
        generator: CPU generator; each example has its own random stream, so its result does not depend on the batch.
            None takes torch's default.

    Raises:
        ValueError: images outside [0, 1], a number out of its range, or logits of one class.

    On a linear model the true radius is the distance to its boundary, here 0.5:

    >>> model = lambda x: torch.stack([x[:, 0] - 0.25, 0.25 - x[:, 0]], 1)
    >>> found = certify(model, torch.tensor([[0.75]]), sigma=0.5, n=5000, generator=torch.Generator().manual_seed(0))
    >>> found.prediction.item(), 0.45 < found.radius.item() < 0.5
    (0, True)
    """
    _check(images, sigma, alpha, n0=n0, n=n)
    batch_size = _copies_at_once(model, images, batch_size)
    guesses, bounds = [], []
    with evaluating(model), torch.no_grad():
        for image, stream in zip(images, streams(len(images), generator), strict=True):
            guess = int(_votes(model, image, sigma, n0, batch_size, stream).argmax())
            successes = int(_votes(model, image, sigma, n, batch_size, stream)[guess])
            guesses.append(guess)
            bounds.append(lower_bound(successes, n, alpha))
    lower = torch.tensor(bounds, dtype=torch.float64)
    sure = lower > 0.5
    prediction = torch.tensor(guesses, dtype=torch.long).where(sure, ABSTAIN)
    radius = (sigma * torch.special.ndtri(lower)).where(sure, 0.0)
    return Certificate(prediction.to(images.device), radius.to(images.device))


def certified(certificate: Certificate, targets: Tensor, eps: float) -> Tensor:
    """Return which examples have a correct certificate within an L2 ball of eps (pixels in [0, 1]), bools (N,).

    The mean is the certified accuracy of the paper, a property of the smoothed classifier. `targets` are classes (N,).
    """
    return (certificate.prediction == targets) & (certificate.radius >= eps)


def smoothed_predict(
    model: Model,
    images: Tensor,
    *,
    sigma: float,
    n: int = 100,
    alpha: float = 0.001,
    batch_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return the smoothed classifier's classes (N,) by PREDICT of the paper; -1 where it abstains.

    It abstains unless the numbers of votes of the two most frequent classes differ significantly (two-sided binomial
    test at level alpha), so that a prediction is wrong with probability alpha at most. Arguments as in `certify`.

    Raises:
        ValueError: as `certify`.
    """
    _check(images, sigma, alpha, n=n)
    batch_size = _copies_at_once(model, images, batch_size)
    from scipy.stats import binomtest  # optional: only certificates need it

    answers = []
    with evaluating(model), torch.no_grad():
        for image, stream in zip(images, streams(len(images), generator), strict=True):
            (first, second), classes = _votes(model, image, sigma, n, batch_size, stream).topk(2)
            sure = binomtest(int(first), int(first + second)).pvalue <= alpha
            answers.append(int(classes[0]) if sure else ABSTAIN)
    return torch.tensor(answers, dtype=torch.long, device=images.device)


def lower_bound(successes: int, n: int, alpha: float) -> float:
    """Return the lower end of Clopper and Pearson's one-sided 1 - alpha interval of a probability.

    >>> round(lower_bound(1000, 1000, 0.001), 6)  # alpha ** (1 / n)
    0.993116
    """
    from scipy.stats import beta  # optional: only certificates need it

    return 0.0 if successes == 0 else float(beta.ppf(alpha, successes, n - successes + 1))


def _votes(model: Model, image: Tensor, sigma: float, n: int, batch_size: int, stream: torch.Generator) -> Tensor:
    """Return how many of n noisy copies are classified as each class, (K,)."""
    votes = torch.zeros((), dtype=torch.long, device=image.device)
    for first in range(0, n, batch_size):
        copies = range(min(batch_size, n - first))
        # Drawn one by one: the values of a single larger draw would depend on the batch size.
        noise = torch.stack([torch.randn(image.shape, generator=stream) for _ in copies]).to(image)
        logits = model(image + sigma * noise)
        if logits.ndim != 2 or logits.shape[1] < 2:
            raise ValueError(f"the model gives {tuple(logits.shape)}; logits are (N, classes), two classes at least")
        votes = votes + logits.argmax(1).bincount(minlength=logits.shape[1])
    return votes


def _copies_at_once(model: Model, images: Tensor, batch_size: int | None) -> int:
    """Return how many noisy copies of an image to classify in one pass."""
    pair = images[:1].expand(2, *images.shape[1:]) if len(images) else images
    return images_at_once(model, pair, batch_size, most=NOISY)


def _check(images: Tensor, sigma: float, alpha: float, **counts: int) -> None:
    check_pixels(images)
    check_number("sigma", sigma, Positive)
    check_number("alpha", alpha, Inside01)
    for name, count in counts.items():
        check_number(name, count, Count)
