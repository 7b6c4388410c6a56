"""The six columns of DD-RobustBench (arXiv 2403.13322), which `--attacks ddrb[@THREAT]` stands for.

    fgsm          one step of eps
    pgd           10 steps of 2/255 from a random start, the last iterate
    pgd, margin   the same on the margin of the logits: what DD-RobustBench calls CW
    vmifgsm       10 steps of 2/255 from the image, 5 neighbours, the last iterate
    jitter        10 steps of 2/255 from a random start, the last iterate
    autoattack    the standard version

Settings are those of its code with torchattacks. In a ball larger than 8/255 a step is eps / 4, as no image reaches the
ball's surface otherwise.

Where we are stronger, so that our numbers are lower: its AutoAttack runs 10 iterations (APGD, FAB), ours 100, the
official version. Only images that are classified right are attacked here, and an image that is misclassified without
an attack stays wrong; there, an attack may make it right. Its margin ends at 50, ours has no end.
"""

from robust.threat import Threat

__all__ = ["FIVE", "ddrb"]

STEP = 2 / 255
"""length of a step, pixels in [0, 1]"""
FIVE = 5
"""columns that `distill.reports.field_mean` joins: all but AutoAttack"""


def ddrb(threat: Threat) -> tuple[str, ...]:
    """Return the columns as a user writes each, AutoAttack last.

    Raises:
        ValueError: the threat is not in linf.

    >>> for column in ddrb(Threat("linf", 2 / 255)):
    ...     print(column)
    fgsm@2/255
    pgd:step_size=2/255,iterate=last@2/255
    pgd:objective=margin,step_size=2/255,iterate=last@2/255
    vmifgsm:neighbours=5,step_size=2/255,iterate=last@2/255
    jitter:step_size=2/255,iterate=last@2/255
    autoattack@2/255
    """
    if threat.norm != "linf":
        raise ValueError(f"ddrb@{threat.written}: DD-RobustBench attacks in linf; write a threat such as 2/255")
    walk = f"step_size={Threat('linf', max(STEP, threat.eps / 4)).written},iterate=last"
    specs = (
        "fgsm",
        f"pgd:{walk}",
        f"pgd:objective=margin,{walk}",
        f"vmifgsm:neighbours=5,{walk}",
        f"jitter:{walk}",
        "autoattack",
    )
    return tuple(f"{spec}@{threat.written}" for spec in specs)
