"""Python, DuckDB and Kubernetes accept every name, whatever the table calls its columns."""

import keyword
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from kubeloop.config import DnsName
from kubeloop.data import sources
from kubeloop.scaffold.names import LONGEST, dns, safe

WORDS = st.sampled_from(["select", "class", "Order", "match", "list", "user", "end", "hour", "label", "self", "", "1a"])
TEXTS = st.one_of(st.text(max_size=60), WORDS)


@given(TEXTS)
def test_python_and_sql_take_a_name_as_it_is(text: str) -> None:
    name = safe(text)
    assert name.isidentifier()
    assert len(name) <= LONGEST
    assert unicodedata.normalize("NFKC", name) == name, "Python would read another name"
    assert not keyword.iskeyword(name)
    assert not keyword.issoftkeyword(name)
    with sources.connect() as db:
        assert db.execute(f"SELECT {name} FROM (SELECT 1 AS {name}) GROUP BY {name}").fetchone() == (1,)  # noqa: S608


@given(st.lists(TEXTS, max_size=30))
def test_names_differ_for_sql_as_well_which_ignores_case(texts: list[str]) -> None:
    taken: set[str] = set()
    for text in texts:
        name = safe(text, taken)
        assert name not in taken
        assert name == name.lower()
        taken.add(name)


@given(TEXTS)
def test_kubernetes_takes_the_name_of_a_loop(text: str) -> None:
    assert TypeAdapter(DnsName).validate_python(dns(text))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Customer ID", "customer_id"),
        ("monthlyFee", "monthly_fee"),
        ("class", "class_field"),
        ("Überweisung €", "überweisung"),
        ("日本", "日本"),
        ("Сумма заказа", "сумма_заказа"),
        ("Straße (m²)", "straße_m2"),
        ("Année", "année"),
        ("\u0627\u0644\u0633\u0639\u0631", "\u0627\u0644\u0633\u0639\u0631"),
        ("€", "field"),
        ("2nd", "field_2nd"),
        ("event_id", "event_id_field"),
        ("plan_now", "plan_now_field"),
    ],
)
def test_a_name_reminds_of_its_column(text: str, name: str) -> None:
    assert safe(text) == name
