"""What the paper reports, for tables that put ours beside it.

The ICLR 2024 submission of GUARD, which has the gradient-matching experiments: accuracy in percent at its own size
(ConvNet-3 of width 128, whole images, students of 1,000 epochs, 50 of them); attacks are PGD of 10 steps. Robust
accuracies are of its Table 2, clean ones of its Table 1, of which only these could be read; the later AAAI paper has
neither. GUARD there is `guard_dc`.
"""

__all__ = ["PAPER", "Figure"]

Figure = tuple[float, float | None]
"""accuracy and its standard deviation, percent; None where the paper gives none"""

_ATTACKS = ("linf_star", "linf", "l2")
_TABLE_2: dict[tuple[str, int], dict[str, tuple[float, float, float]]] = {  # in the order of _ATTACKS
    ("cifar10", 1): {
        "dc": (2.1, 17.5, 21.8),
        "dsa": (3.1, 17.7, 22.0),
        "dm": (2.1, 14.6, 18.8),
        "mtt": (0.1, 10.3, 17.0),
        "frepo": (0.4, 7.6, 11.2),
        "guard_dc": (4.7, 19.3, 22.5),
    },
    ("cifar10", 10): {
        "dc": (0.3, 18.8, 27.2),
        "dsa": (0.3, 17.7, 26.1),
        "dm": (0.3, 14.8, 22.4),
        "mtt": (0.1, 15.5, 27.0),
        "frepo": (0.9, 12.6, 17.2),
        "guard_dc": (1.9, 23.5, 28.2),
    },
    ("mnist", 10): {
        "dc": (0.0, 68.0, 80.5),
        "dsa": (0.0, 71.2, 81.5),
        "dm": (0.0, 65.3, 78.6),
        "mtt": (0.0, 63.7, 74.3),
        "frepo": (0.0, 54.3, 74.4),
        "guard_dc": (0.5, 74.6, 81.8),
    },
}
_DEVIATIONS = {  # of guard_dc; None where it is not given
    ("cifar10", 1): (0.3, 0.4, 0.2),
    ("cifar10", 10): (0.3, 0.4, 0.2),
    ("mnist", 10): (None, 0.5, 0.4),
}
_CLEAN: dict[tuple[str, int], dict[str, Figure]] = {
    ("cifar10", 10): {
        "dd": (36.8, 1.2),
        "dc": (45.3, None),
        "mtt": (65.3, None),
        "dim": (66.2, 0.5),
        "frepo": (65.5, None),
    },
    ("mnist", 10): {
        "dd": (79.5, 8.1),
        "dc": (96.4, None),
        "mtt": (97.3, None),
        "dim": (98.6, None),
        "frepo": (98.6, None),
    },
}

PAPER: dict[tuple[str, int, str, str], Figure] = {
    (*place, method, "clean"): figure for place, row in _CLEAN.items() for method, figure in row.items()
} | {
    (*place, method, attack): (value, _DEVIATIONS[place][k] if method == "guard_dc" else None)
    for place, rows in _TABLE_2.items()
    for method, row in rows.items()
    for k, (attack, value) in enumerate(zip(_ATTACKS, row, strict=True))
}
"""(data set, ipc, method, column) -> what the paper has"""
