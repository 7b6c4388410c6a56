"""What official codes normalise images with, by the code and the data set: sets are read and exported with these."""

__all__ = ["CONSTANTS", "Constants"]

Constants = tuple[tuple[float, ...], tuple[float, ...]]
"""mean and std, a number a channel"""

_GREY = {"mnist": ((0.1307,), (0.3081,)), "fashion_mnist": ((0.2861,), (0.3530,))}
_CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR = (_CIFAR_MEAN, (0.2023, 0.1994, 0.2010))
_CIFAR100 = ((0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_PHOTOS = dict.fromkeys(("tiny_imagenet", "imagenet", "imagenette"), _IMAGENET)
CONSTANTS: dict[str, dict[str, Constants]] = {
    # VICO-UoE/DatasetCondensation utils.py; CAFE and DCC have the same
    "dc": _GREY | {"cifar10": _CIFAR, "cifar100": _CIFAR100} | _PHOTOS,
    # SsnL/dataset-distillation datasets/__init__.py
    "dd": {"mnist": _GREY["mnist"], "cifar10": (_CIFAR_MEAN, (0.247, 0.243, 0.261))},
    # GeorgeCazenavette/mtt-distillation utils.py: CIFAR-100 has CIFAR-10's
    "mtt": {"cifar10": _CIFAR, "cifar100": _CIFAR} | _PHOTOS,
    # yongchaoz/FRePo lib/dataset/dataloader.py
    "frepo": _GREY
    | {"cifar10": (_CIFAR_MEAN, (0.2470, 0.2435, 0.2616)), "cifar100": _CIFAR100}
    | {"tiny_imagenet": ((0.4759, 0.4481, 0.3926), (0.2763, 0.2687, 0.2813))}
    | {"imagenette": ((0.4626, 0.4588, 0.4251), (0.2790, 0.2745, 0.2973))},
}
"""by the code that made a set, and the data set"""
