"""margins: a booster's raw scores of a few rows, by XGBoost's C API.

`Booster.inplace_predict` looks at each call what kind of data it got, and spells its settings as JSON: of one row that
takes longer than many a tree. The function that it calls then is called here at once, with the same settings, so that
the scores are the same to the last bit.
"""

import ctypes
import json
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tasks.training.model import import_xgboost

SETTINGS = {
    "type": 1,  # the margin
    "training": False,
    "iteration_begin": 0,
    "iteration_end": 0,
    "missing": float("nan"),
    "strict_shape": False,
    "cache_id": 0,
}
CONFIG = json.dumps(SETTINGS).encode()
ARRAY = b'{"data":[%d,true],"shape":[%d,%d],"typestr":"<f4","version":3}'  # NumPy's array interface


@cache
def _load_library() -> Any:
    """XGBoost's own, which this process has loaded: the same file gives the same library."""
    import_xgboost()
    from xgboost.libpath import find_lib_path

    library = ctypes.CDLL(find_lib_path()[0])
    library.XGBGetLastError.restype = ctypes.c_char_p
    return library


def find_margins(booster: Any, matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Feature rows (n, features), contiguous → raw scores before calibration, (n,) or (n, classes).

    Any thread may ask, as of `inplace_predict`.

    Raises:
        RuntimeError: XGBoost does not take the matrix.
    """
    library = _load_library()
    shape, scores = ctypes.POINTER(ctypes.c_uint64)(), ctypes.POINTER(ctypes.c_float)()
    dimensions = ctypes.c_uint64()
    rows, width = matrix.shape
    failed = library.XGBoosterPredictFromDense(
        booster.handle,
        ARRAY % (matrix.ctypes.data, rows, width),
        CONFIG,
        None,
        ctypes.byref(shape),
        ctypes.byref(dimensions),
        ctypes.byref(scores),
    )
    if failed:
        raise RuntimeError(f"XGBoost: {library.XGBGetLastError().decode()}")
    sizes = shape[: dimensions.value]
    count = 1
    for size in sizes:
        count *= size
    raw = ctypes.string_at(scores, count * 4)  # the buffer is XGBoost's: it is reused by this thread's next call
    return np.frombuffer(raw, np.float32).reshape(sizes)
