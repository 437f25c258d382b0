"""Run by the test in a process of its own, in which PySpark can be imported: the join, and a suite, on Spark."""

import json
import sys
import warnings
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq

warnings.simplefilter("ignore")


def join(folder: Path) -> list[dict[str, object]]:
    """Build the feature tables of a repo whose store is Spark, and return the training set."""
    from kubeloop import features

    features.build(folder / "repo", folder / "raw", folder / "spark")
    rows = features.events(
        folder / "repo", folder / "raw", start=datetime(2024, 1, 1, tzinfo=UTC), end=datetime(2025, 1, 1, tzinfo=UTC)
    )
    found: list[dict[str, object]] = features.training_set(folder / "spark", "shop_v1", rows).to_pylist()
    return found


def suite(folder: Path) -> dict[str, bool]:
    """Return by expectation what Great Expectations' Spark engine finds in the raw prices."""
    from pyspark.sql import SparkSession

    from kubeloop import expectations, validation

    table = folder / "raw" / "prices.parquet"
    entries = expectations.resolve(
        expectations.load(folder / "suites", ["prices"]), {"prices": table}, datetime(2025, 1, 1, tzinfo=UTC)
    )["prices"]
    context = validation._context(folder / "docs")
    source = context.data_sources.add_spark("prices")
    batches = source.add_dataframe_asset("prices").add_batch_definition_whole_dataframe("all")
    frame = SparkSession.builder.getOrCreate().read.parquet(str(table))
    outcome = batches.get_batch(batch_parameters={"dataframe": frame}).validate(validation._suite("prices", entries))
    return {result.expectation_config.type: bool(result.success) for result in outcome.results}


if __name__ == "__main__":
    here = Path(sys.argv[1])
    assert pq.read_metadata(here / "raw" / "prices.parquet").num_rows
    (here / "found.json").write_text(json.dumps({"rows": join(here), "suite": suite(here)}, default=str))
