"""The page of a validation in the Kubeflow UI: a narrow frame without scripts or network."""

import re
from datetime import UTC, datetime

from kubeloop.data.validation_page import html
from kubeloop.data.validation_report import SHARED, Failure, Report, TableReport, held_back

DOCS = "s3://bucket/data-docs/flight-delay/flight-delay-training-20261128-081233-ab12/raw"
FOUND = Report(
    passed=False,
    as_of=datetime(2013, 4, 1, 6, 30, 0, 250_000, tzinfo=UTC),
    tables={"weather": TableReport(rows=26115, quarantined=3, expectations=14, reasons={"not_null <temp>": 3})},
    failures=(Failure("weather", "not_null", "temp", "3 values", "none", 0.01, (None,)),),
    docs=DOCS,
    quarantine="s3://bucket/quarantine",
)


def test_the_page_says_what_was_found() -> None:
    page = html("flight-delay: raw data", FOUND)
    assert "As of 2013-04-01 06:30:00 UTC:" in page
    assert '<b class="bad">failed</b>' in page
    assert "not_null &lt;temp&gt;: 3" in page
    assert "26,115" in page


def test_the_page_fits_a_narrow_frame_and_needs_nothing_else() -> None:
    page = html("flight-delay: raw data", FOUND)
    assert f"<code>{DOCS}</code>" in page
    assert re.search(r"code \{[^}]*overflow-wrap: anywhere", page), "an address of a hundred characters wraps"
    assert "@media (max-width" in page
    assert not re.search(r"""(src|href)=|url\(|@import|<script|https?://""", page)


def test_rows_that_share_an_id_are_said_with_what_to_do() -> None:
    """The page says it, and so does the sentence that `kubeloop run` shows."""
    table = TableReport(rows=4000, quarantined=5, expectations=9, reasons={SHARED: 4, "between(x)": 1})
    found = Report(True, FOUND.as_of, {"training_set": table}, (), DOCS, "quarantine")
    says = "4 rows have the event_id of another row"
    assert says in html("t", found)
    assert says not in html("t", FOUND)
    (sentence,) = held_back(found)
    assert sentence.startswith(f"Held back: 5 of 4,000 rows of training_set: 4 by {SHARED}, 1 by between(x). {says}")
    assert "add the column that tells them apart to event_id" in sentence
    assert held_back(FOUND) == ["Held back: 3 of 26,115 rows of weather: 3 by not_null <temp>"]
