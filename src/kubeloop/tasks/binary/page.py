"""Render the evaluation of a binary model: ROC, precision and recall, calibration and confusion."""

from collections.abc import Mapping, Sequence

from kubeloop.tasks.binary.curves import Curves
from kubeloop.tasks.binary.task import Binary
from kubeloop.tasks.slices import Slice
from kubeloop.tasks.tabular import page
from kubeloop.tasks.tabular.page import Matrix, Plot

_WHOLE = (0.0, 1.0)


def html(
    task: Binary,
    title: str,
    metrics: Mapping[str, float],
    curves: Curves,
    slices: Sequence[Slice] = (),
    *,
    importance: Mapping[str, float] | None = None,
    facts: Mapping[str, object] | None = None,
    warnings: Sequence[str] = (),
) -> str:
    """Return a complete page; arguments as for `tabular.page.html`; `curves` is the result of `curves.draw`."""
    confusion = curves.confusion
    lines = (
        ("ROC", curves.roc, ((0, 0), (1, 1)), "false positive rate", "true positive rate"),
        ("Precision and recall", curves.pr, ((0, curves.prevalence), (1, curves.prevalence)), "recall", "precision"),
        ("Calibration", curves.calibration, ((0, 0), (1, 1)), "mean prediction", "share of class 1"),
    )
    return page.html(
        task,
        title,
        f"{metrics['rows']:,.0f} hold-out rows, {metrics['positives']:,.0f} of them ({curves.prevalence:.1%}) class 1",
        metrics,
        [
            Plot(name, x, y, _WHOLE, _WHOLE, list(zip(line.x, line.y, strict=True)), name == "Calibration", base=base)
            for name, line, base, x, y in lines
        ],
        slices,
        matrix=Matrix(
            f"Confusion at {confusion.threshold:.3f}",
            ("0", "1"),
            confusion.matrix,
            f"Precision {confusion.precision:.3f}, recall {confusion.recall:.3f}. Shares are of the true class.",
        ),
        importance=importance,
        facts=facts,
        warnings=warnings,
    )
