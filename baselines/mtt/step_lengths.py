"""How far experts move in the epochs that are matched, beside a plainly trained expert.

The N steps on the synthetic images must cover the way of M epochs of an expert. Weights of adversarial training move
further than plain ones, and an average of the weights moves less; if the way is much longer than that of plain experts,
for which N and M were chosen, no set follows it (MAT, arXiv 2503.12069).
"""

from dataclasses import replace
from statistics import fmean

from baselines.mtt.config import Config
from baselines.mtt.trajectories import Expert, Trajectories, experts
from distill.data import ImageSet
from distill.phrases import counted
from distill.runs.run import Run
from robust import CrossEntropy
from robust.losses.in_pixels import Preprocessing

__all__ = ["compare_step_lengths", "step_length"]

TOO_FAR = 1.5
"""ratio of the two lengths from which a message advises a smaller M"""


def step_length(trajectory: Trajectories, config: Config) -> float:
    """Return the mean distance of the first expert's weights at the two ends of M epochs, over the start epochs."""
    starts = range(config.min_start_epoch, config.max_start_epoch)
    ends = {t: trajectory.snapshot(0, t) for t in {*starts, *(t + config.expert_epochs for t in starts)}}
    return fmean((ends[t + config.expert_epochs] - ends[t]).norm().item() for t in starts)


def compare_step_lengths(
    found: Trajectories, real: ImageSet, space: Preprocessing, expert: Expert, config: Config, run: Run
) -> float:
    """Tell the user how far the experts move in M epochs, beside a plain expert of the same initial weights.

    The plain expert is trained if no run has trained it; `mtt` has the same experts.

    Args:
        found: the experts' trajectories.
        real: the training set.
        space: preprocessing of pixels.
        expert: settings of the experts.
        config: with M and the start epochs.
        run: the run of the method.

    Returns:
        the ratio of the two lengths.
    """
    plain = experts(real, space, replace(expert, loss=CrossEntropy(), average=0.0), 1, run)
    mine, other = step_length(found, config), step_length(plain, config)
    ratio = mine / max(other, 1e-12)
    epochs = counted(config.expert_epochs, "epoch")
    line = f"experts move by {mine:.3g} in {epochs}, a plain expert by {other:.3g} ({ratio:.2f} times)"
    advice = "; take a smaller --expert-epochs or a larger --expert-average" if ratio > TOO_FAR else ""
    run.notify(line + advice)
    return ratio
