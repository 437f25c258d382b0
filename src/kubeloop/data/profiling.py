"""Draft an expectation suite from data, for a team that has a table but no suite yet.

The draft tells a broken table from drift. Its bounds are wide enough for drift, which the monitor watches and
retraining answers. They are narrow enough to stop a wrong unit, a broken join, a doubled load or a stalled source.
A person reads, edits and commits the draft; a run never writes it again.
"""

from collections.abc import Sequence
from datetime import timedelta
from math import ceil, floor, log10
from typing import Any

import numpy as np
import pandas as pd

from kubeloop.config import duration_text

__all__ = ["profile"]

CATEGORIES = 200
"""Strings with at most this many distinct values are treated as categories."""

ROWS_A_CATEGORY = 10
"""Fewest rows per value, on average, in a column of categories."""

_KEEP = {"rows": "keep"}

Suite = list[dict[str, dict[str, Any]]]


def profile(frame: pd.DataFrame, *, timestamp: str, label: str | None = None, keys: Sequence[str] = ()) -> Suite:
    """Derive a suite that these data pass.

    - Schema: every column exists, and numbers, booleans and moments keep their type. Strings are left out, since
      their type differs between versions of pandas.
    - Volume: half to twice the rows.
    - Keys: present in 99 % of the rows, and the others go to the quarantine; unique together, if they are now.
    - Freshness: the newest `timestamp` is not after the run's moment, and not before it by more than three times
      the largest gap in the data, at least one day.
    - Nulls: twice today's share plus two points, or half of today's values lost, whichever allows fewer.
      Rows stay, since models take missing values.
    - Numbers: the span between the quantiles 0.001 and 0.999, widened by half of itself at both ends, for 99 % of
      the values. Quantiles, because one absurd value must not set the bounds. Rows outside go to the quarantine.
    - Strings with few values: the values seen now, for 98 % of the rows. Rows stay: a new category is worth
      reporting, and encoders can handle it.
    - Label: 0 or 1 in 99 % of the rows, and a positive share between half of today's and half of the way from there
      to 1. Any share of nulls, since rows wait for their labels.

    Args:
        frame: at least one row.
        timestamp: column with the moment of a row, timezone-aware.
        label: binary column, if the table has one.
        keys: columns that identify a row.

    Returns:
        The suite as `expectations.dump` writes it and `expectations.load` reads it.

    Raises:
        ValueError: the frame is empty or lacks a named column, `timestamp` has no time zone, or the label is not
            binary.
    """
    named = [timestamp, *keys, *([label] if label else [])]
    missing = [name for name in named if name not in frame.columns]
    if missing:
        raise ValueError(
            f"the data have no column {', '.join(missing)}; they have {', '.join(map(str, frame.columns))}"
        )
    if frame.empty:
        raise ValueError("the data have no rows, so no suite can be drafted")
    if not isinstance(frame[timestamp].dtype, pd.DatetimeTZDtype):
        raise ValueError(f"{timestamp} has no time zone; convert it with pandas.to_datetime(..., utc=True)")
    suite = [
        _item("expect_table_columns_to_match_set", column_set=[str(name) for name in frame.columns], exact_match=False),
        _item("expect_table_row_count_to_be_between", min_value=len(frame) // 2, max_value=len(frame) * 2),
    ]
    suite += _keys(frame, keys)
    suite += _freshness(frame[timestamp], timestamp)
    for name in frame.columns:
        suite += _type(frame[name], str(name))
        if name == label:
            suite += _label(frame[name], str(name))
        elif name not in (timestamp, *keys):
            suite += _column(frame[name], str(name))
    return suite


def _item(name: str, **arguments: Any) -> dict[str, dict[str, Any]]:
    return {name: arguments}


def _keys(frame: pd.DataFrame, keys: Sequence[str]) -> Suite:
    suite = [
        _item("expect_column_values_to_not_be_null", column=key, mostly=0.99)
        for key in keys
        if frame[key].notna().all()
    ]
    if keys and not frame.duplicated(list(keys)).any():
        if len(keys) == 1:
            suite.append(_item("expect_column_values_to_be_unique", column=keys[0]))
        else:
            suite.append(_item("expect_compound_columns_to_be_unique", column_list=list(keys)))
    return suite


def _freshness(moments: "pd.Series[Any]", name: str) -> Suite:
    bounds: dict[str, Any] = {"max_value": {"as_of": "0d"}}
    known = moments.dropna().drop_duplicates().sort_values()
    # A table loaded at one moment has no rate from which a stall could be seen.
    if len(known) > 1:
        days = max(1, ceil(3 * known.diff().max() / timedelta(days=1)))
        bounds = {"min_value": {"as_of": f"-{duration_text(timedelta(days=days))}"}} | bounds
    return [_nulls(moments, name), _item("expect_column_max_to_be_between", column=name, **bounds)]


def _nulls(values: "pd.Series[Any]", name: str) -> dict[str, dict[str, Any]]:
    share = float(values.isna().mean())
    # Rounded down, so that the draft's data pass.
    mostly = floor(max(1 - 2 * share - 0.02, (1 - share) / 2) * 1000) / 1000
    return _item("expect_column_values_to_not_be_null", column=name, mostly=mostly, meta=dict(_KEEP))


def _is_bool(values: "pd.Series[Any]") -> bool:
    """Return whether a column holds booleans; if it also holds a null, pandas has no type for it."""
    return bool(pd.api.types.is_bool_dtype(values)) or pd.api.types.infer_dtype(values, skipna=True) == "boolean"


def _type(values: "pd.Series[Any]", name: str) -> Suite:
    if _is_bool(values):
        return [_item("expect_column_values_to_be_in_type_list", column=name, type_list=["bool"])]
    if pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values):
        return []
    if pd.api.types.is_integer_dtype(values):
        # A single null turns integers into floats, and the share of nulls has its own tolerance.
        return [_item("expect_column_values_to_be_in_type_list", column=name, type_list=["int64", "float64"])]
    if pd.api.types.is_float_dtype(values):
        return [_item("expect_column_type_to_be", column=name, type_="float64")]
    if isinstance(values.dtype, pd.DatetimeTZDtype):
        return [_item("expect_column_type_to_be", column=name, type_="datetime64[us, UTC]")]
    return [_item("expect_column_type_to_be", column=name, type_=str(values.dtype))]


def _label(values: "pd.Series[Any]", name: str) -> Suite:
    if not values.dropna().isin([0, 1]).all():
        raise ValueError(f"the label {name} holds values other than 0 and 1; name a binary column, or none")
    share = float(values.mean())
    bounds = {"min_value": round(share / 2, 4), "max_value": round((1 + share) / 2, 4)}
    suite = [_item("expect_column_mean_to_be_between", column=name, **bounds)]
    if not _is_bool(values):
        suite.append(_item("expect_column_values_to_be_in_set", column=name, value_set=[0, 1], mostly=0.99))
    return suite


def _column(values: "pd.Series[Any]", name: str) -> Suite:
    if values.isna().all():
        return []
    suite = [_nulls(values, name)]
    if _is_bool(values):
        return suite
    if pd.api.types.is_numeric_dtype(values):
        suite += _range(values, name)
    elif pd.api.types.is_object_dtype(values) or pd.api.types.is_string_dtype(values):
        suite += _categories(values, name)
    return suite


def _range(values: "pd.Series[Any]", name: str) -> Suite:
    finite = values.dropna().astype(float)
    finite = finite[np.isfinite(finite)]
    if finite.empty:
        return []
    low, high = (float(bound) for bound in finite.quantile([0.001, 0.999]))
    # A constant has no span; half of its size is used, so that a change of unit is still found.
    margin = (high - low) / 2 or abs(high) / 2 or 1.0
    digits = 1 - floor(log10(margin))
    bounds = {"min_value": round(low - margin, digits), "max_value": round(high + margin, digits)}
    return [_item("expect_column_values_to_be_between", column=name, **bounds, mostly=0.99)]


def _categories(values: "pd.Series[Any]", name: str) -> Suite:
    known = values.dropna()
    if not known.map(lambda value: isinstance(value, str)).all():
        return []
    seen = sorted(known.unique())
    if len(seen) > CATEGORIES or len(seen) * ROWS_A_CATEGORY > len(known):
        return []
    return [_item("expect_column_values_to_be_in_set", column=name, value_set=seen, mostly=0.98, meta=dict(_KEEP))]
