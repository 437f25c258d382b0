"""Runs in a separate process in which PySpark can be imported: the join and a suite on Spark."""

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubeloop import features
from kubeloop.data import expectations, validation

AS_OF = datetime(2024, 3, 2, tzinfo=UTC)


def join(folder: Path) -> list[dict[str, object]]:
    """Build the feature tables of a repo whose store is Spark, and return the training set."""
    features.build(folder / "repo", folder / "raw", folder / "spark")
    rows = features.events(
        folder / "repo", folder / "raw", start=datetime(2024, 1, 1, tzinfo=UTC), end=datetime(2025, 1, 1, tzinfo=UTC)
    )
    found: list[dict[str, object]] = features.training_set(folder / "spark", "shop_v1", rows).to_pylist()
    return found


def entries(folder: Path) -> list[expectations.Entry]:
    """Return the suite of the raw prices."""
    tables = {"prices": folder / "raw" / "prices.parquet"}
    return expectations.resolve(expectations.load(folder / "suites", ["prices"]), tables, AS_OF)["prices"]


def counts(outcome: Any) -> list[dict[str, Any]]:
    """Return each expectation's verdict and figures, in the suite's order."""
    results = sorted(outcome.results, key=validation._place)
    figures = ("element_count", "missing_count", "unexpected_count", "observed_value")
    return [{"success": bool(each.success)} | {key: each.result.get(key) for key in figures} for each in results]


def suite(folder: Path) -> list[dict[str, Any]]:
    """Return what Great Expectations' Spark engine finds in the raw prices."""
    from pyspark.sql import SparkSession

    source = validation._context(folder / "docs").data_sources.add_spark("prices")
    batches = source.add_dataframe_asset("prices").add_batch_definition_whole_dataframe("all")
    frame = SparkSession.builder.getOrCreate().read.parquet(str(folder / "raw" / "prices.parquet"))
    batch = batches.get_batch(batch_parameters={"dataframe": frame})
    return counts(batch.validate(validation._suite("prices", entries(folder))))


if __name__ == "__main__":
    here = Path(sys.argv[1])
    (here / "found.json").write_text(json.dumps({"rows": join(here), "suite": suite(here)}, default=str))
