"""The page of a validation as the Kubeflow UI shows it: in a narrow frame without scripts or network."""

import re
from datetime import UTC, datetime

from kubeloop.data.validation_page import html
from kubeloop.data.validation_report import Failure, Report, TableReport

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
    assert re.search(r"code \{[^}]*overflow-wrap: anywhere", page), "an address of a hundred characters breaks"
    assert "@media (max-width" in page
    assert not re.search(r"""(src|href)=|url\(|@import|<script|https?://""", page)
