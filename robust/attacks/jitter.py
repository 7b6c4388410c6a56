"""Jitter (Schwinn et al., arXiv 2105.10304): signed steps on a loss of rescaled, noisy probabilities.

Attacks by cross-entropy move most images of a robust network towards few classes. Jitter scales the logits z to one
size, so that the softmax does not saturate, and adds noise to the probabilities, so that other classes are tried:

    p = softmax(scale z / max |z|) + std n,      n standard normal for each class
    loss = mean_k (p_k - y_k)^2                  y the target's one-hot vector
    loss / max |x' - x|                          where x' is misclassified: also look for a smaller change

The paper measures the Euclidean distance, whose gradient has the sign of that of its square as long as x' is classified
right. The square is that of torchattacks 3.5.1, which is followed where the paper leaves a choice (random start,
derivative of the divisor). Differences from torchattacks: each example has its own random stream, and by default leaves
the batch at its first misclassified point, so that the loss is never divided; with `iterate="last"` all examples take
all steps. The noise shifts the gradient, so points are compared by the loss without it. The default step is PGD's,
2.5 eps / steps: at 8/255 and 10 steps, torchattacks' 2/255.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from robust.attacks.pgd import check_pixels
from robust.attacks.record import Iterate
from robust.attacks.signed_steps import check_box, gradients_of, signed_steps
from robust.network.inference import outside_inference
from robust.network.modes import Model
from robust.per_example import streams
from robust.ranges import Count, NonNegative, Positive, StepSize, check_ranges
from robust.registry import Named
from robust.threat import Threat

__all__ = ["Jitter", "scaled_distance"]


def scaled_distance(logits: Tensor, targets: Tensor, scale: float, noise: Tensor | float = 0.0) -> Tensor:
    """Return the mean squared distance of the probabilities of rescaled logits from the targets' one-hot vectors.

    Args:
        logits: (N, K).
        targets: (N,) class indices.
        scale: size of the largest logit after rescaling.
        noise: (N, K), added to the probabilities.

    Returns:
        (N,); the same for logits of any scale.

    >>> logits = torch.tensor([[3.0, -3.0]])
    >>> [round(scaled_distance(s * logits, torch.tensor([1]), scale=0.5).item(), 4) for s in (1, 100)]
    [0.5344, 0.5344]
    """
    size = logits.abs().amax(1, keepdim=True).clamp_min(torch.finfo(logits.dtype).tiny)
    probabilities = (scale * logits / size).softmax(1)
    labels = torch.zeros_like(probabilities).scatter(1, targets[:, None], 1.0)
    return (probabilities + noise - labels).square().mean(1)


@dataclass(frozen=True)
class Jitter:
    """Jitter as an `Attack`, in linf. Inputs of any shape.

    Raises:
        ValueError: a threat in another norm, or a field out of its range.
    """

    threat: Threat
    """the ball, in linf"""
    steps: Count = 10
    """signed steps"""
    step_size: StepSize = None
    """length of a step; None is 2.5 * eps / steps"""
    scale: Positive = 10.0
    """size of the largest logit in the softmax"""
    std: NonNegative = 0.1
    """standard deviation of the noise on the probabilities, new in each step"""
    random_start: bool = True
    """whether to start at a uniform point of the ball, else at the image"""
    iterate: Iterate = "worst"
    """the point to return: the "worst", or the "last" (see `signed_steps`)"""

    def __post_init__(self) -> None:
        check_ranges(self)
        check_box("jitter", self.threat, self.iterate)

    @outside_inference
    def __call__(
        self, model: Model, images: Tensor, targets: Tensor, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Return adversarial images for pixels, (N, ...) -> (N, ...), both in [0, 1].

        Args:
            model: maps pixels (N, ...) to logits (N, K), normalisation inside; its train/eval mode is unchanged.
            images: (N, ...) pixels in [0, 1].
            targets: (N,) class indices.
            generator: CPU generator of the random streams of starts and noise, one for each example; None takes torch's
                default.

        Raises:
            ValueError: images outside [0, 1].
        """
        check_pixels(images)
        images = images.detach()
        if self.threat.eps == 0 or len(images) == 0:
            return images.clone()
        generators = streams(len(images), generator)
        begin = self.threat.random_start(images, generators) if self.random_start else images

        def slope(points: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
            clean, labels = images[indices], targets[indices]

            def value(points: Tensor, logits: Tensor) -> Tensor:
                noise = 0.0
                if self.std:
                    draws = [torch.randn(logits.shape[1], generator=generators[i]) for i in indices.tolist()]
                    noise = self.std * torch.stack(draws).to(logits)
                distance = self.threat.distance(points, clean)
                divided = (logits.argmax(1) != labels) & (distance > 0)
                return scaled_distance(logits, labels, self.scale, noise) / distance.where(divided, 1.0)

            return gradients_of(model, points, value)

        return signed_steps(
            model,
            images,
            targets,
            begin,
            threat=self.threat,
            steps=self.steps,
            step_size=2.5 * self.threat.eps / self.steps if self.step_size is None else self.step_size,
            iterate=self.iterate,
            slope=slope,
            direction=lambda _, gradients, __: gradients,
            objective=lambda logits, labels: scaled_distance(logits, labels, self.scale),
        )


NAMED: Named = {"jitter": Jitter}
NORM = {"jitter": "linf"}
