r"""The bounds of section 5 of the GUARD paper, with each term measured.

Xue et al., "Towards Adversarially Robust Condensed Dataset by Curvature Regularization", submission to ICLR 2024 (the
first version of arXiv 2403.10045, AAAI 2025), whose equation numbers these are. For an image x of class c, l is its
cross-entropy under the model, H the Hessian of l in x, lambda_1 "the largest eigenvalue of the Hessian", D_c the
distribution of the real images of class c, h a feature extractor, x' a distilled image of class c. The paper states:

    (1)  l(x + v) = l(x) + grad'v + v'Hv/2 + o(|v|^2); without the last term it is the quadratic model l~(x + v)
         l~adv(x) = max_{|v| <= rho} l~(x + v)
    (2)  E_{D_c} l~adv(x) <= E_{D_c} l(x) + rho E_{D_c} |grad l(x)| + rho^2/2 E_{D_c} lambda_1(x)
    Proposition 1. If |h(x') - E_{D_c} h(x)| <= sigma, l is convex in x, and l~adv is L-Lipschitz in the feature space:
    (3)  l~adv(x') <= E_{D_c} l(x) + rho E_{D_c} |grad l(x)| + rho^2/2 E_{D_c} lambda_1(x) + L sigma

(3) is the right side of (2) plus L sigma. The paper does not name the norm |v|; the norm here is L2, in which an
eigenvalue bounds v'Hv. The text at hand ends before its Appendix A, which has the proof of Proposition 1. Deviations
and remarks:

  - The terms are those of each image; the paper's (2) is their mean over the images of a class (`class_means`).
  - lambda_1 is the *algebraically* largest eigenvalue, which bounds v'Hv from above; the eigenvalue of largest absolute
    value does not. Where lambda_1 < 0, (2) does not hold as printed (for grad = 0 and a concave l, the worst v is 0);
    the term here is rho^2/2 max(lambda_1, 0). For a convex l, which Proposition 1 assumes and (2) does not, lambda_1
    is never negative.
  - l~adv is the maximum of the quadratic model, which `robust.theory.quadratic` computes. The loss itself may exceed
    it, and both bounds: by a third-order term, M rho^3/6 for a Hessian of Lipschitz constant M, which no finite
    computation gives; and in a ReLU network by its kinks, which H does not contain. `adversarial_loss` is the largest
    loss that PGD finds, and `BoundTerms.holds` says whether it is within the bound.
  - sigma is the distance |h(x') - E h(x)| for each x', the least value that the assumption allows.
  - (3) requires that the adversarial loss at the mean feature is at most the mean adversarial loss: Jensen's inequality
    for a function that is convex *in the features*. A convex l makes max_v l(x + v) convex in x, which is sufficient
    for h(x) = x. For other h, and for l~adv, the stated assumption is not sufficient. `robust.theory.convexity` finds
    pairs of images at which a loss is not convex. L is a supremum; `TransferTerms.slope` bounds it from below.

All lengths are L2 in the units of `images`: pixels in [0, 1] when normalisation is inside the model.
"""

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from robust.attacks.pgd import pgd
from robust.losses.cross_entropy import cross_entropy
from robust.network.inference import outside_inference
from robust.network.modes import Model, evaluating
from robust.per_example import norms
from robust.ranges import Range, check_number, check_ranges
from robust.theory.hessian import examples_at_once, passes, with_constant_parameters
from robust.theory.quadratic import QuadraticModel, quadratic_model
from robust.theory.spectrum import Method
from robust.threat import Threat

Radius = Annotated[float, Range(above=0, hint="in pixels of [0, 1]")]

__all__ = ["BoundTerms", "TransferTerms", "bound_terms", "class_means", "transfer_terms"]


@dataclass(frozen=True)
class BoundTerms:
    """Both sides of bound (2) for each example (N,), in nats; the paper's (2) is the mean over a class."""

    rho: Radius
    """L2 radius of the attacker, in pixels of [0, 1]"""
    loss: Tensor
    """l(x)"""
    gradient: Tensor
    """rho |grad l(x)|"""
    curvature: Tensor
    """rho^2/2 max(lambda_1(x), 0); the paper has lambda_1, with which (2) fails where it is negative"""
    lambda_1: Tensor
    """algebraically largest eigenvalue of the input Hessian, nats per pixel^2"""
    quadratic: Tensor
    """l~adv(x), the left side of (2): the maximum of the quadratic model in the ball"""
    adversarial_loss: Tensor
    """largest loss that PGD found in the ball: a lower bound of the adversarial loss"""

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def bound(self) -> Tensor:
        """The right side of (2)."""
        return self.loss + self.gradient + self.curvature

    @property
    def holds(self) -> Tensor:
        """Bools (N,): the loss that PGD found is within the bound, up to rounding; False shows higher-order terms."""
        return self.adversarial_loss <= self.bound + 1e-5 * (1 + self.bound.abs())


@outside_inference
def bound_terms(
    model: Model,
    images: Tensor,
    targets: Tensor,
    rho: float,
    *,
    around: QuadraticModel | None = None,
    method: Method = "power",
    iterations: int = 1000,
    tolerance: float = 1e-4,
    steps: int = 20,
    restarts: int = 1,
    generator: torch.Generator | None = None,
    batch_size: int | None = None,
) -> BoundTerms:
    """Return the terms of bound (2), the adversarial loss of the quadratic model, and that which PGD finds.

    Args:
        model: maps pixels in [0, 1] to logits (N, K), normalisation inside; in evaluation mode meanwhile.
        images: (N, ...) pixels in [0, 1].
        targets: (N,) class indices.
        rho: L2 radius, > 0, in pixels of [0, 1]. PGD also stays in [0, 1], which the bound does not require.
        around: the quadratic models of the same images, to compute them once for several radii; None computes them.
        method: of `top_eigenvalue`, as are `iterations` and `tolerance`.
        iterations: of `top_eigenvalue`.
        tolerance: of `top_eigenvalue`.
        steps: steps of PGD, each of length 2.5 rho / steps, also after an example is misclassified.
        restarts: random starts of PGD, in addition to the start at the image.
        generator: CPU generator; None is a generator of seed 0.
        batch_size: as of `top_eigenvalue`.

    Returns:
        the terms, each (N,).

    Raises:
        ValueError: rho is not > 0, images are outside [0, 1], or an option of `top_eigenvalue` is invalid.

    >>> model = torch.nn.Linear(4, 3)
    >>> terms = bound_terms(model, torch.rand(5, 4, generator=torch.Generator()), torch.tensor([0, 1, 2, 0, 1]), 0.01)
    >>> bool(terms.holds.all()), bool((terms.loss <= terms.adversarial_loss).all())
    (True, True)
    """
    check_number("rho", rho, Radius)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    batch_size = examples_at_once(model, images, batch_size)
    if around is None:
        options = {"method": method, "iterations": iterations, "tolerance": tolerance, "batch_size": batch_size}
        around = quadratic_model(model, images, targets, generator=generator, **options)
    worst = around.losses.clone()
    attack = {"threat": Threat("l2", rho), "steps": steps, "step_size": 2.5 * rho / steps, "iterate": "last"}
    with evaluating(model), torch.no_grad():
        network = with_constant_parameters(model)
        for attempt in range(1 + restarts):
            found = []
            for _, x, y, _ in passes(network, images, targets, cross_entropy, batch_size):
                points = pgd(network, x, y, random_start=attempt > 0, generator=generator, **attack)
                found.append(cross_entropy(network(points), y))
            worst = torch.maximum(worst, torch.cat(found))
    curvature = rho**2 / 2 * around.lambda_1.clamp_min(0)
    terms = (around.losses, rho * around.gradient_norms, curvature, around.lambda_1, around.maximum(rho), worst)
    return BoundTerms(rho, *terms)


def class_means(terms: BoundTerms, targets: Tensor) -> BoundTerms:
    """Return the terms of (2) as the paper has them: means over the images of each class, in the order of classes.

    Args:
        terms: of N examples.
        targets: (N,) class indices.

    Returns:
        the terms, each with an entry for each class that has images.
    """
    classes = targets.unique()
    member = (targets == classes[:, None]).to(terms.loss)
    names = ("loss", "gradient", "curvature", "lambda_1", "quadratic", "adversarial_loss")
    return BoundTerms(terms.rho, *(member @ getattr(terms, name) / member.sum(1) for name in names))


@dataclass(frozen=True)
class TransferTerms:
    """Both sides of bound (3) for each distilled example (M,); the averages are over the real examples of its class.

    Two assumptions of Proposition 1 cannot be checked. L, the Lipschitz constant of the adversarial loss in the
    features, is a supremum: `slope` bounds L from below, and `least_lipschitz` is the smallest L with which (3) holds.
    The other assumption is convexity, which `robust.theory.convexity` refutes where a pair of images violates it.
    """

    loss: Tensor
    """E l(x)"""
    gradient: Tensor
    """rho E |grad l(x)|; the authors' project page prints (3) without this term"""
    curvature: Tensor
    """rho^2/2 E max(lambda_1(x), 0)"""
    distance: Tensor
    """|h(x') - E h(x)|, the smallest sigma of Proposition 1 for this example"""
    slope: Tensor
    """largest |difference of l~adv| / |difference of features| of two real examples of the class, <= L"""
    quadratic: Tensor
    """l~adv(x'), the left side of (3)"""
    adversarial_loss: Tensor
    """largest loss that PGD found in the ball around the distilled example"""

    def bound(self, lipschitz: float | Tensor) -> Tensor:
        """Return the right side of (3) for an assumed L, a number or (M,), in nats per unit of feature distance."""
        return self.loss + self.gradient + self.curvature + lipschitz * self.distance

    @property
    def least_lipschitz(self) -> Tensor:
        """The least L >= 0 with which (3) holds for the example; infinite if none does (distance 0).

        0 does not confirm the Proposition: it says that the loss of the distilled example is so small that (3) holds
        without the term L sigma.
        """
        excess = (self.quadratic - self.bound(0.0)).clamp_min(0)
        return torch.where(excess > 0, excess / self.distance, excess)


def transfer_terms(
    real: BoundTerms,
    distilled: BoundTerms,
    *,
    real_targets: Tensor,
    distilled_targets: Tensor,
    real_features: Tensor,
    distilled_features: Tensor,
) -> TransferTerms:
    """Return the terms of bound (3), from the terms of (2) of a real and a distilled set under one model.

    Args:
        real: terms of N real examples.
        distilled: terms of M distilled examples, at the same rho.
        real_targets: (N,) class indices.
        distilled_targets: (M,) class indices, each with a real example.
        real_features: (N, ...), h of the real images: a feature extractor's output, or the images themselves.
        distilled_features: (M, ...), h of the distilled images.

    Returns:
        the terms, each (M,).

    Raises:
        ValueError: the radii differ, or a distilled class has no real example.
    """
    if real.rho != distilled.rho:
        raise ValueError(f"real terms are at rho {real.rho}, distilled terms at {distilled.rho}; use the same rho")
    terms = {name: torch.empty_like(distilled.loss) for name in ("loss", "gradient", "curvature", "distance", "slope")}
    for c in distilled_targets.unique().tolist():
        of_real, of_distilled = real_targets == c, distilled_targets == c
        if not of_real.any():
            raise ValueError(f"no real example of class {c}, which the distilled set has; give some of every class")
        for name in ("loss", "gradient", "curvature"):
            terms[name][of_distilled] = getattr(real, name)[of_real].mean()
        features = real_features[of_real].flatten(1)
        shifts = distilled_features[of_distilled].flatten(1) - features.mean(0)
        terms["distance"][of_distilled] = norms(shifts).to(terms["distance"])
        terms["slope"][of_distilled] = _steepest(features, real.quadratic[of_real]).to(terms["slope"])
    return TransferTerms(**terms, quadratic=distilled.quadratic, adversarial_loss=distilled.adversarial_loss)


def _steepest(features: Tensor, losses: Tensor) -> Tensor:
    """Return the largest slope of the losses (N,) between two features (N, D), computed in float64.

    Pairs that are as close as rounding of the features are left out: their slope is one of rounding errors.
    """
    rounding = torch.finfo(features.dtype).eps * features.double().norm(dim=1).amax() * 10
    apart = torch.cdist(features.double(), features.double(), compute_mode="donot_use_mm_for_euclid_dist")
    rises = (losses[:, None] - losses).abs().double()
    return torch.where(apart > rounding, rises / apart, 0.0).amax()
