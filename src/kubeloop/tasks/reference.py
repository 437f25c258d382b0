"""The reference of a model version: a sample of its training data, with which live traffic is compared."""

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from kubeloop.errors import KubeloopError
from kubeloop.stores import kept
from kubeloop.tasks.intervals import Estimate

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int32]
Kind = Literal["numeric", "categorical"]
Column = Sequence[Any] | npt.NDArray[Any]

ABSENT = -1
"""Code of a categorical value that is missing, or that did not occur in training."""

OTHER = "\x00other"
"""The last category of a feature with many values: all values that are not among the most frequent, or that are new."""
MOST_CATEGORIES = 100
"""Most categories of a drift test. For 5,000 categories that follow Zipf's law, 27 % of windows of 150 rows without
drift have a p-value below 0.01; with all but these merged, it is 2 %."""

_FORMAT = 3
_TOML = "reference.toml"
_BOUNDS = ("", "_low", "_high")
_ARRAYS = ("numeric", "categorical", "score")


class BrokenReferenceError(KubeloopError, ValueError):
    """A reference is damaged, or data do not fit it; the message names the part and says what to do."""

    lasting = True


@dataclass(frozen=True)
class Measured:
    """The headline metric on the hold-out, with its 95 % interval."""

    metric: str
    sure: Estimate


@dataclass(frozen=True, eq=False)
class Reference:
    """A seeded sample of the training rows, with the data needed to read them.

    Attributes:
        numeric_names: names of the Fn numeric features, in the order of `numeric`.
        categorical_names: names of the Fc categorical features, in the order of `categorical`.
        categories: for each categorical feature its known values; a code is the index into them. If there are many
            values, the most frequent ones and `OTHER`.
        numeric: [n, Fn] float32, NaN where missing.
        categorical: [n, Fc] int32 codes, -1 (`ABSENT`) where missing or not among the categories.
        score: [s] float32, or [s, k] if an answer has k numbers: the model's answers on the hold-out; s may differ from
            n.
        importance: share of the model's importance by feature; not negative, sums to 1.
        measured: the headline metric on the hold-out, None if unknown; a reference from before intervals were stored
            has an interval of length 0.
        rows: training rows before sampling.
        trained_from: first moment of the training window, ISO 8601.
        trained_to: end of the training window, ISO 8601.
        model_version: the registered version, None before registration.
        titles: what each number of an answer is called.

    Raises:
        BrokenReferenceError: the parts contradict each other.
    """

    numeric_names: tuple[str, ...]
    categorical_names: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    numeric: Floats
    categorical: Codes
    score: Floats
    importance: dict[str, float]
    measured: Measured | None
    rows: int
    trained_from: str
    trained_to: str
    model_version: str | None = None
    titles: tuple[str, ...] = ("score",)

    def __post_init__(self) -> None:
        names = self.names
        if len(set(names)) != len(names):
            raise BrokenReferenceError(
                f"feature names repeat: {sorted(names)}; give each feature one name and one kind"
            )
        if set(self.categories) != set(self.categorical_names):
            raise BrokenReferenceError("categories must name exactly the categorical features")
        for name, array, dtype, width in (
            ("numeric", self.numeric, np.float32, len(self.numeric_names)),
            ("categorical", self.categorical, np.int32, len(self.categorical_names)),
        ):
            if array.dtype != dtype or array.ndim != 2 or array.shape[1] != width:
                found = f"{array.dtype} {array.shape}"
                raise BrokenReferenceError(
                    f"{name} must be {np.dtype(dtype)} [rows, {width}], not {found}; train again"
                )
        if len(self.numeric) != len(self.categorical):
            raise BrokenReferenceError(f"{len(self.numeric)} numeric but {len(self.categorical)} categorical rows")
        if self.score.dtype != np.float32 or self.score.shape[1:] != self._width:
            found = f"{self.score.dtype} {self.score.shape}"
            raise BrokenReferenceError(f"score must be float32 {['rows', *self._width]}, not {found}")
        sizes = np.array([len(self.categories[name]) for name in self.categorical_names], dtype=np.int32)
        if ((self.categorical < ABSENT) | (self.categorical >= sizes)).any():
            raise BrokenReferenceError("a categorical code lies outside its categories; train again")
        shares = [self.importance.get(name, -1.0) for name in names]
        if len(self.importance) != len(names) or not all(share >= 0 for share in shares):
            raise BrokenReferenceError(
                "importance must give every feature, and nothing else, a share that is not negative"
            )
        if names and abs(sum(shares) - 1) > 1e-6:
            raise BrokenReferenceError(f"importance sums to {sum(shares):g}, not 1")

    @property
    def names(self) -> tuple[str, ...]:
        """All features: the numeric, then the categorical ones."""
        return self.numeric_names + self.categorical_names

    @property
    def _width(self) -> tuple[int, ...]:
        return () if len(self.titles) == 1 else (len(self.titles),)

    @property
    def scores(self) -> dict[str, Floats]:
        """Each number of the answers on the hold-out by its title [s]."""
        return dict(zip(self.titles, np.atleast_2d(self.score.T), strict=True))

    def encode(self, columns: Mapping[str, Column]) -> tuple[Floats, Codes]:
        """Read a window's columns as the reference reads its own.

        Args:
            columns: one column of m values per feature; None or NaN is missing; other columns are ignored.

        Returns:
            numeric [m, Fn] float32 and categorical [m, Fc] int32.

        Raises:
            BrokenReferenceError: a feature is missing, a value is not a number, or the columns differ in length.
        """
        return _encode(columns, self.numeric_names, self.categorical_names, self.categories)

    def save(self, folder: Path) -> None:
        """Write reference.toml and three .npy files into the folder, which is made if necessary.

        The TOML file is written last, so that an interrupted save cannot be loaded.
        """
        folder.mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        digests = {name: _digest(folder / f"{name}.npy") for name in _ARRAYS}
        (folder / _TOML).write_text(kept.seal(_toml(self, digests)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """Read what `save` wrote.

        Raises:
            BrokenReferenceError: a file is missing or damaged, or the files contradict each other.
        """
        try:
            head = tomllib.loads(kept.unseal(folder / _TOML))
            for name, told in head.get("sha256", {}).items():
                if _digest(folder / f"{name}.npy") != told:
                    raise BrokenReferenceError(f"{folder / name}.npy is damaged; restore it, or train the model again")
            arrays = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in _ARRAYS}
            if not 1 <= head["format"] <= _FORMAT:
                raise BrokenReferenceError(
                    f"format {head['format']} is not {_FORMAT} or older; use the kubeloop that trained the model"
                )
            return cls(
                numeric_names=tuple(head["numeric"]),
                categorical_names=tuple(head["categorical"]),
                categories={name: tuple(values) for name, values in head["categories"].items()},
                importance={name: float(share) for name, share in head["importance"].items()},
                measured=_measured(head),
                titles=tuple(head.get("titles", ("score",))),
                rows=int(head["rows"]),
                trained_from=str(head["trained_from"]),
                trained_to=str(head["trained_to"]),
                model_version=head.get("model_version"),
                **arrays,
            )
        except FileNotFoundError as error:
            raise BrokenReferenceError(f"{error.filename} does not exist; train the model again to make it") from error
        except KeyError as error:
            raise BrokenReferenceError(f"{folder / _TOML} lacks {error}; train the model again to make it") from error
        except kept.DamagedError as error:
            raise BrokenReferenceError(f"{error}; restore it, or train the model again") from error
        except (ValueError, TypeError, AttributeError, EOFError, OSError) as error:
            raise BrokenReferenceError(f"the reference in {folder} cannot be read: {error}") from error


def build(
    columns: Mapping[str, Column],
    kinds: Mapping[str, Kind],
    score: Column,
    importance: Mapping[str, float],
    measured: Measured | None,
    *,
    titles: tuple[str, ...] = ("score",),
    trained_from: str,
    trained_to: str,
    model_version: str | None = None,
    max_rows: int = 10_000,
    seed: int = 7,
) -> Reference:
    """Make a reference from training columns.

    Args:
        columns: one column of n values per feature; None or NaN is missing; columns not in `kinds` are ignored.
        kinds: kind of each feature; its order becomes the order within each kind.
        score: the model's answers on the hold-out [s] or [s, k]; they are sampled to `max_rows` separately.
        importance: importance of some or all features on any scale; scaled to sum to 1 (equal if all are 0).
        measured: the headline metric on the hold-out.
        titles: what each number of an answer is called.
        trained_from: first moment of the training window, ISO 8601.
        trained_to: end of the training window, ISO 8601.
        model_version: the registered version, if it is known already.
        max_rows: rows to keep; sampled without replacement, in their order.
        seed: of the sample.

    Raises:
        BrokenReferenceError: a column is missing or cannot be read, or the importance names an unknown feature.
    """
    numeric_names = tuple(name for name, kind in kinds.items() if kind == "numeric")
    categorical_names = tuple(name for name, kind in kinds.items() if kind == "categorical")
    unknown = set(importance) - set(kinds)
    if unknown:
        raise BrokenReferenceError(f"importance names {sorted(unknown)}, which are not features of this model")
    categories = {name: _frequent(_texts(_column(columns, name))) for name in categorical_names}
    numeric, categorical = _encode(columns, numeric_names, categorical_names, categories)
    scores = _numbers("score", score)
    rng = np.random.default_rng(seed)
    rows = _sample(rng, len(numeric), max_rows)
    weights = {name: float(importance.get(name, 0.0)) for name in numeric_names + categorical_names}
    total = sum(weights.values())
    return Reference(
        numeric_names=numeric_names,
        categorical_names=categorical_names,
        categories=categories,
        numeric=numeric[rows],
        categorical=categorical[rows],
        score=scores[_sample(rng, len(scores), max_rows)],
        importance={name: weight / total if total else 1 / len(weights) for name, weight in weights.items()},
        measured=measured,
        titles=titles if scores.ndim == 2 else ("score",),
        rows=len(numeric),
        trained_from=trained_from,
        trained_to=trained_to,
        model_version=model_version,
    )


def _sample(rng: np.random.Generator, rows: int, most: int) -> npt.NDArray[np.int64]:
    if rows <= most:
        return np.arange(rows)
    return np.sort(rng.choice(rows, most, replace=False))


def _column(columns: Mapping[str, Column], name: str) -> Column:
    if name not in columns:
        raise BrokenReferenceError(f"the data have no column {name!r}, which the model reads")
    return columns[name]


def _numbers(name: str, column: Column) -> Floats:
    try:
        # A number too large for float32 becomes infinite: it is still a value, and the largest one.
        with np.errstate(over="ignore"):
            return np.asarray(column, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise BrokenReferenceError(f"numeric feature {name!r} holds a value that is not a number: {error}") from error


def _texts(column: Column) -> list[str | None]:
    values = column.tolist() if isinstance(column, np.ndarray) else column
    # NaN, pandas' mark for a missing text, is the one value that differs from itself.
    return [
        value if isinstance(value, str) else None if value is None or value != value else str(value) for value in values
    ]


def _frequent(texts: Sequence[str | None]) -> tuple[str, ...]:
    counts = Counter(text for text in texts if text is not None)
    if len(counts) <= MOST_CATEGORIES:
        return tuple(sorted(counts))
    most = sorted(counts, key=lambda text: (-counts[text], text))[:MOST_CATEGORIES]
    return (*sorted(set(most) - {OTHER}), OTHER)


def _encode(
    columns: Mapping[str, Column],
    numeric_names: tuple[str, ...],
    categorical_names: tuple[str, ...],
    categories: Mapping[str, tuple[str, ...]],
) -> tuple[Floats, Codes]:
    lengths = {len(_column(columns, name)) for name in numeric_names + categorical_names}
    if len(lengths) > 1:
        raise BrokenReferenceError(f"the columns differ in length: {sorted(lengths)}")
    rows = lengths.pop() if lengths else 0
    numeric = np.empty((rows, len(numeric_names)), dtype=np.float32)
    for index, name in enumerate(numeric_names):
        values = _numbers(name, columns[name])
        if values.ndim != 1:
            raise BrokenReferenceError(f"numeric feature {name!r} has shape {values.shape}; give one value per row")
        numeric[:, index] = values
    categorical = np.empty((rows, len(categorical_names)), dtype=np.int32)
    for index, name in enumerate(categorical_names):
        codes = {text: code for code, text in enumerate(categories[name])}
        new = codes.get(OTHER, ABSENT)
        categorical[:, index] = [ABSENT if text is None else codes.get(text, new) for text in _texts(columns[name])]
    return numeric, categorical


def _measured(head: Mapping[str, Any]) -> Measured | None:
    name = head.get("metric", "auc")
    if name not in head:
        return None
    return Measured(name, Estimate(*(head.get(f"{name}{end}", head[name]) for end in _BOUNDS)))


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _toml(reference: Reference, digests: Mapping[str, str]) -> str:
    # An older monitor would read `OTHER` as missing, but it can read a reference without it.
    needed = 2 if any(OTHER in values for values in reference.categories.values()) else 1
    found = reference.measured
    if reference.score.ndim > 1 or (found and found.metric != "auc"):
        needed = _FORMAT
    lines = [f"format = {needed}", f"rows = {reference.rows}"]
    if found is not None:
        if found.metric != "auc":
            lines.append(f"metric = {_quote(found.metric)}")
        lines += [f"{found.metric}{end} = {float(value)!r}" for end, value in zip(_BOUNDS, found.sure, strict=True)]
    if reference.score.ndim > 1:
        lines.append(f"titles = {_array(reference.titles)}")
    lines += [f"{key} = {_quote(getattr(reference, key))}" for key in ("trained_from", "trained_to")]
    if reference.model_version is not None:
        lines.append(f"model_version = {_quote(reference.model_version)}")
    lines += [f"numeric = {_array(reference.numeric_names)}", f"categorical = {_array(reference.categorical_names)}"]
    lines += ["", "[sha256]", *(f"{name} = {_quote(digest)}" for name, digest in digests.items())]
    lines += ["", "[importance]"]
    lines += [f"{_quote(name)} = {float(share)!r}" for name, share in reference.importance.items()]
    lines += ["", "[categories]"]
    lines += [f"{_quote(name)} = {_array(values)}" for name, values in reference.categories.items()]
    return "\n".join(lines) + "\n"


def _array(values: tuple[str, ...]) -> str:
    return f"[{', '.join(map(_quote, values))}]"


def _quote(text: str) -> str:
    # A JSON string is a TOML basic string, except for DEL, which TOML requires to be escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
