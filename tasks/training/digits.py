"""Numbers that files keep: six digits, since further ones differ between machines. Pure."""

from typing import Any

import numpy as np


def round_digits(value: float, digits: int = 6) -> float:
    """The number with so many significant digits."""
    return float(f"{value:.{digits}g}")


def to_tuples(values: Any) -> Any:
    """An array of any shape → nested tuples of numbers with six digits."""
    return tuple(map(to_tuples, values)) if np.ndim(values) else round_digits(values)
