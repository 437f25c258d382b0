from pathlib import Path

import pytest

from kubeloop import paths


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("/models/a", "/models/a"),
        ("models/a b", "models/a b"),
        ("file:///models/a%20b", "/models/a b"),
        ("file://localhost/models/a", "/models/a"),
        ("file://elsewhere/models/a", None),
        ("s3://bucket/a", None),
        ("models:/a/1", "models:/a/1"),
    ],
)
def test_an_address_on_this_machine(address: str, expected: str | None) -> None:
    assert paths.local(address) == (None if expected is None else Path(expected))
