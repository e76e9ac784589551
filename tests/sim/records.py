"""When two records are the same."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from voltana.record import RunRecord

TOLERANCE = 1e-9


def assert_same(reference: RunRecord, fast: RunRecord) -> None:
    """Every row, and every number but those that tell how fast the simulation was."""
    assert_same_table(reference.requests(), fast.requests())
    assert_same_table(reference.instances(), fast.instances())
    _same_numbers(reference.summary, fast.summary)


def assert_same_table(reference: pd.DataFrame, fast: pd.DataFrame) -> None:
    """Every row."""
    assert len(reference) == len(fast)
    for name in reference:
        left, right = reference[name], fast[name]
        if left.dtype.kind == "f":
            np.testing.assert_allclose(right, left, rtol=TOLERANCE, atol=TOLERANCE, err_msg=name)
        else:
            pd.testing.assert_series_equal(left, right)


def _same_numbers(reference: Any, fast: Any, key: str = "") -> None:
    if isinstance(reference, dict):
        assert reference.keys() == fast.keys()
        for name in reference.keys() - {"wall_s", "simulated_requests_per_s"}:
            _same_numbers(reference[name], fast[name], f"{key}.{name}")
    elif isinstance(reference, float):
        assert fast == pytest.approx(reference, rel=TOLERANCE, abs=1e-12), key
    else:
        assert fast == reference, key
