"""Common corruptions at five severities: `corrupt(images, name, severity)`."""

from robust.evaluation.corruptions.registry import COMMON, CORRUPTIONS, SEVERITIES, corrupt, corruptions_for

__all__ = ["COMMON", "CORRUPTIONS", "SEVERITIES", "corrupt", "corruptions_for"]
