import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeloop.stores import kept
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.reference import ABSENT, OTHER, BrokenReferenceError, Measured, Reference, build

KINDS = {"delay": "numeric", "carrier": "categorical", "wind": "numeric"}
COLUMNS: dict[str, Any] = {
    "delay": [1.0, None, 3.0, 4.0],
    "carrier": ["UA", "AA", None, "UA"],
    "wind": np.array([0.5, 1.5, np.nan, 2.5]),
    "event_id": ["a", "b", "c", "d"],
}


def example(**changes: Any) -> Reference:
    arguments = {
        "columns": COLUMNS,
        "kinds": KINDS,
        "score": [0.1, 0.9, 0.4],
        "importance": {"delay": 3, "carrier": 1},
        "measured": Measured("auc", Estimate(0.76, 0.7, 0.8)),
        "trained_from": "2013-01-01T00:00:00+00:00",
        "trained_to": "2013-04-01T00:00:00+00:00",
        "model_version": "3",
    }
    return build(**(arguments | changes))


def same(one: Reference, other: Reference) -> bool:
    plain = [f for f in one.__dataclass_fields__ if f not in ("numeric", "categorical", "score")]
    return all(getattr(one, f) == getattr(other, f) for f in plain) and all(
        np.array_equal(getattr(one, f), getattr(other, f), equal_nan=f != "categorical")
        for f in ("numeric", "categorical", "score")
    )


def test_build_reads_each_column_by_its_kind() -> None:
    reference = example()
    assert reference.numeric_names == ("delay", "wind")
    assert reference.categories == {"carrier": ("AA", "UA")}
    np.testing.assert_array_equal(reference.numeric, np.float32([[1, 0.5], [np.nan, 1.5], [3, np.nan], [4, 2.5]]))
    assert reference.categorical[:, 0].tolist() == [1, 0, ABSENT, 1]
    assert reference.importance == {"delay": 0.75, "wind": 0.0, "carrier": 0.25}
    assert (reference.rows, len(reference.score)) == (4, 3)


def test_of_many_categories_the_most_frequent_are_kept_and_the_others_are_one(tmp_path: Path) -> None:
    texts = [f"k{i:04d}" for i in range(5000)] + [f"k{i:04d}" for i in range(100)] * 2 + [None, OTHER]
    few = [f"k{i}" for i in range(100)] * 52 + [None, None]
    kinds = {"many": "categorical", "few": "categorical"}
    reference = example(columns={"many": texts, "few": few}, kinds=kinds, importance={})
    assert reference.categories["many"] == (*(f"k{i:04d}" for i in range(100)), OTHER)
    assert len(reference.categories["few"]) == 100
    rest = reference.categories["many"].index(OTHER)
    assert (reference.categorical[:, 0] == rest).sum() == 4901
    _, codes = reference.encode({"many": ["k0001", "k4999", "new", None], "few": ["k1", "k99", "new", None]})
    assert codes.tolist() == [[1, reference.categories["few"].index("k1")], [rest, 99], [rest, ABSENT], [ABSENT] * 2]
    reference.save(tmp_path)
    assert same(Reference.load(tmp_path), reference)
    assert "format = 2\n" in (tmp_path / "reference.toml").read_text()
    assert (tmp_path / "reference.toml").stat().st_size < 4000
    example().save(tmp_path)
    assert "format = 1\n" in (tmp_path / "reference.toml").read_text(), "an older monitor can read it"


def test_importance_of_a_model_without_splits_is_equal() -> None:
    assert set(example(importance={}).importance.values()) == {1 / 3}


def test_the_sample_is_seeded_ordered_and_keeps_rows_together() -> None:
    columns = {"x": np.arange(1000), "c": [f"k{i % 90}" for i in range(1000)]}
    kinds = {"x": "numeric", "c": "categorical"}
    score = np.arange(500) / 500
    one, again, other = (
        example(columns=columns, kinds=kinds, score=score, importance={}, max_rows=100, seed=seed) for seed in (1, 1, 2)
    )
    assert same(one, again)
    assert not np.array_equal(one.numeric, other.numeric)
    assert (len(one.numeric), len(one.score), one.rows) == (100, 100, 1000)
    assert (np.diff(one.numeric[:, 0]) > 0).all()
    names = [one.categories["c"][code] for code in one.categorical[:, 0]]
    assert names == [f"k{int(x) % 90}" for x in one.numeric[:, 0]]


def test_encode_marks_what_training_never_saw() -> None:
    window = {
        "delay": [9, 9, 9, 1e300],
        "wind": [None, 1, 2, 3],
        "carrier": np.array(["AA", "ZZ", None, np.nan], object),
    }
    numeric, categorical = example().encode(window)
    assert categorical[:, 0].tolist() == [0, ABSENT, ABSENT, ABSENT]
    assert np.isnan(numeric[0, 1])
    assert np.isposinf(numeric[3, 0])
    assert (numeric.dtype, categorical.dtype) == (np.float32, np.int32)


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ({"delay": [1], "carrier": ["AA"]}, "wind"),
        ({"delay": [1, 2], "carrier": ["AA"], "wind": [1]}, "length"),
        ({"delay": ["late"], "carrier": ["AA"], "wind": [1]}, "delay"),
        ({"delay": [[1]], "carrier": ["AA"], "wind": [1]}, "one value per row"),
    ],
)
def test_encode_refuses_what_does_not_fit(window: dict[str, Any], says: str) -> None:
    with pytest.raises(BrokenReferenceError, match=says):
        example().encode(window)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"importance": {"altitude": 1}}, "altitude"),
        ({"importance": {"delay": -1, "wind": 3}}, "not negative"),
        ({"kinds": {"altitude": "numeric"}, "importance": {}}, "altitude"),
        ({"score": ["high"]}, "score"),
    ],
)
def test_build_refuses_what_does_not_fit(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(BrokenReferenceError, match=says):
        example(**changes)


texts = st.text(max_size=8)
_METRICS = st.sampled_from(["auc", "log_loss"])
floats = st.one_of(st.none(), st.floats(width=32))


@st.composite
def references(draw: st.DrawFn) -> Reference:
    names = draw(st.lists(texts, unique=True, max_size=5))
    kinds = {name: draw(st.sampled_from(["numeric", "categorical"])) for name in names}
    rows = draw(st.integers(0, 6))
    values = {"numeric": floats, "categorical": st.one_of(st.none(), texts)}
    return build(
        {name: draw(st.lists(values[kind], min_size=rows, max_size=rows)) for name, kind in kinds.items()},
        kinds,
        draw(st.lists(st.floats(0, 1, width=32), max_size=6)),
        {name: draw(st.floats(0, 1e6)) for name in names},
        draw(st.one_of(st.none(), st.builds(Measured, _METRICS, st.builds(Estimate, *[st.floats(0, 1)] * 3)))),
        trained_from=draw(texts),
        trained_to=draw(texts),
        model_version=draw(st.one_of(st.none(), texts)),
        max_rows=draw(st.integers(1, 8)),
    )


@settings(max_examples=60, deadline=None)
@given(reference=references())
def test_what_is_saved_is_loaded(reference: Reference, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("reference") / "deeper"
    reference.save(folder)
    assert same(Reference.load(folder), reference)


def test_the_head_is_plain_toml(tmp_path: Path) -> None:
    example(model_version=None, measured=None).save(tmp_path)
    head = tomllib.loads((tmp_path / "reference.toml").read_text())
    assert head["categories"] == {"carrier": ["AA", "UA"]}
    assert head["numeric"] == ["delay", "wind"]
    assert not {"auc", "auc_low", "auc_high", "model_version"} & set(head)


def test_a_reference_from_before_intervals_has_one_without_length(tmp_path: Path) -> None:
    example().save(tmp_path)
    path = tmp_path / "reference.toml"
    lines = path.read_text().splitlines(keepends=True)[1:]
    path.write_text("".join(line for line in lines if not line.startswith("auc_")))
    assert Reference.load(tmp_path).measured == Measured("auc", Estimate(0.76, 0.76, 0.76))


def rewrite(name: str, content: bytes) -> Any:
    return lambda folder: (folder / name).write_bytes(content)


def replace(old: str, new: str) -> Any:
    def change(folder: Path) -> None:
        text = (folder / "reference.toml").read_text()
        assert old in text
        (folder / "reference.toml").write_text(text.replace(old, new))

    return change


def put(name: str, array: Any) -> Any:
    return lambda folder: np.save(folder / name, array)


@pytest.mark.parametrize("name", ["reference.toml", "numeric.npy", "categorical.npy", "score.npy"])
def test_a_flipped_bit_is_found(name: str, tmp_path: Path) -> None:
    example().save(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-2] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BrokenReferenceError, match=rf"{name} is damaged"):
        Reference.load(tmp_path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (shutil.rmtree, "does not exist"),
        (lambda folder: (folder / "score.npy").unlink(), "score.npy does not exist"),
        (rewrite("reference.toml", b"rows = ["), "cannot be read"),
        (rewrite("reference.toml", b"\xff\xfe"), "is damaged: it is not text"),
        (rewrite("reference.toml", b"format = 1"), "lacks"),
        (rewrite("numeric.npy", b""), "cannot be read"),
        (rewrite("numeric.npy", b"\x93NUMPY\x01\x00v\x00"), "cannot be read"),
        (put("score.npy", np.array([{"a": 1}], dtype=object)), "cannot be read"),
        (put("numeric.npy", np.zeros((4, 3), np.float32)), "numeric must be"),
        (put("numeric.npy", np.zeros((4, 2))), "numeric must be"),
        (put("numeric.npy", np.zeros((3, 2), np.float32)), "3 numeric but 4"),
        (put("categorical.npy", np.full((4, 1), 2, np.int32)), "outside its categories"),
        (put("score.npy", np.zeros((3, 1), np.float32)), "score must be"),
        (replace("format = 1", "format = 9"), "format 9"),
        (replace('"delay" = 0.75', '"delay" = 0.5'), "sums to 0.75"),
        (replace('"delay" = 0.75', '"altitude" = 0.75'), "importance must give"),
        (replace('"carrier" = ["AA", "UA"]', '"plane" = []'), "exactly the categorical"),
        (replace('numeric = ["delay", "wind"]', 'numeric = ["delay", "delay"]'), "repeat"),
        (replace("[categories]", "[[categories]]"), "cannot be read"),
    ],
)
def test_a_damaged_reference_is_refused(damage: Any, says: str, tmp_path: Path) -> None:
    example().save(tmp_path / "reference")
    # As an older kubeloop wrote it, without a checksum that would show a change.
    head = tmp_path / "reference" / "reference.toml"
    head.write_text(re.sub(r"\[sha256\]\n(\w+ = .*\n)+", "", kept.unseal(head)))
    damage(tmp_path / "reference")
    with pytest.raises(BrokenReferenceError, match=says):
        Reference.load(tmp_path / "reference")
