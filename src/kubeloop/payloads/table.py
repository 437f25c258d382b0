"""The payload log as one table: every logged prediction, with its label if it has arrived."""

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from kubeloop.config import Settings
from kubeloop.payloads import decode
from kubeloop.tasks.port import Task


@dataclass(frozen=True)
class Log:
    """What the payload log of a service holds.

    Attributes:
        predictions: one row per requested event, in the order of the log: event_id, event_time,
            model_version, `Task.columns` and the features. An event that was requested twice counts once, with its
            first answer.
        labels: event_id and label, as truth of the task, the first of each event.
    """

    predictions: pa.Table
    labels: pa.Table

    @property
    def event_ids(self) -> list[str]:
        """The ids of events with a prediction."""
        found: list[str] = self.predictions["event_id"].to_pylist()
        return found

    @property
    def labelled(self) -> list[str]:
        """The ids of events with a label."""
        found: list[str] = self.labels["event_id"].to_pylist()
        return found

    def labelled_predictions(self) -> pa.Table:
        """Return the predictions whose label has arrived, with the column `label`, oldest event first."""
        joined = self.predictions.join(self.labels, "event_id", join_type="inner")
        return joined.sort_by([("event_time", "ascending"), ("event_id", "ascending")])


def read(task: Task, settings: Settings, service: str) -> Log:
    """Read the whole payload log of a service, whose answers and labels are those of a task."""
    table, _ = decode.read(settings.payloads, after=0)
    decoded = decode.decode(task, table, service=service)
    return Log(
        _first(decoded.predictions.filter(pc.is_valid(decoded.predictions["event_id"]))),
        _first(decoded.labels).select(["event_id", "label"]),
    )


def _first(table: pa.Table) -> pa.Table:
    """Keep the first row of each event."""
    numbered = table.append_column("row", pa.array(range(table.num_rows), pa.int64()))
    first = numbered.group_by("event_id").aggregate([("row", "min")])["row_min"]
    kept = table.take(first.sort())
    return (
        kept.sort_by([("event_time", "ascending"), ("event_id", "ascending")])
        if "event_time" in table.column_names
        else kept
    )
