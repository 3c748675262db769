"""Figures of a client's predictions for labelled samples: of the test, and of `fedms evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt

BINS = 15
"""Of equal width, over the probabilities of the predicted classes, for the calibration error."""


@dataclass(frozen=True)
class ClassFigures:
    """One class."""

    samples: int
    """Samples of this class."""
    predicted: int
    """Samples that were predicted to be of it."""
    precision: float
    """The share of those that are of it; 0 if there are none."""
    recall: float
    """The share of its samples that were found; 0 if there are none."""
    f1: float
    """The harmonic mean of both."""


@dataclass(frozen=True)
class Evaluation:
    """How well predictions fit the labels."""

    samples: int
    accuracy: float
    macro_f1: float
    """The mean F1 of all classes that are among the labels or the predictions."""
    calibration_error: float | None
    """Mean distance between probability and accuracy in `BINS` bins, weighted by samples (Guo et al. 2017,
    arXiv 1706.04599): 0 where of the predictions with probability p a share of p is right. None
    if a probability is no number."""
    classes: dict[str, ClassFigures]
    """The classes that are among the labels or the predictions, in the order of the model."""
    confusion: list[list[int]]
    """Samples by class (row) and predicted class (column), both in the order of `classes`."""


def check_labels(classes: Sequence[str], labels: Iterable[object], where: str = "label") -> list[str]:
    """The labels as names of classes.

    Raises:
        FedmsError: a label is none of the model's classes; the message counts from 1.
    """
    names, known = [str(label) for label in labels], set(classes)
    for number, name in enumerate(names, 1):
        if name not in known:
            some = ", ".join(map(excerpt, classes[:10])) + (", ..." if len(classes) > 10 else "")
            what = f"{excerpt(repr(name))} is none of the model's {len(classes)} classes: {some}"
            raise FedmsError(f"{where} {number}: {what}")
    return names


def evaluate(
    classes: Sequence[str], labels: Sequence[str], answers: Sequence[str], probabilities: Sequence[float]
) -> Evaluation:
    """Compare answers with labels, both names of classes.

    Args:
        probabilities: those of the answers.

    Raises:
        FedmsError: there are no samples, or not as many labels as answers.
    """
    if len(labels) != len(answers):
        raise FedmsError(f"{len(labels)} labels for {len(answers)} inputs: each input needs one label")
    if not labels:
        raise FedmsError("there are no samples to evaluate on")
    named = {*labels, *answers}
    place = {name: at for at, name in enumerate(name for name in classes if name in named)}
    is_of, said = ([place[name] for name in names] for names in (labels, answers))
    confusion = np.zeros((len(place), len(place)), dtype=np.int64)
    np.add.at(confusion, (is_of, said), 1)
    hits, samples, predicted = confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)
    f1 = 2 * hits / (samples + predicted)  # one of the two is not 0, else the class would not be there
    shares = (hits / np.maximum(predicted, 1), hits / np.maximum(samples, 1), f1)
    columns = zip(*(values.tolist() for values in (samples, predicted, *shares)), strict=True)
    right = np.equal(is_of, said)
    return Evaluation(
        samples=len(labels),
        accuracy=float(right.mean()),
        macro_f1=float(f1.mean()),
        calibration_error=_calibration_error(np.asarray(probabilities), right),
        classes={name: ClassFigures(*values) for name, values in zip(place, columns, strict=True)},
        confusion=confusion.tolist(),
    )


def _calibration_error(probabilities: np.ndarray, hits: np.ndarray) -> float | None:
    """The expected calibration error of probabilities [n] and hits [n]."""
    if not np.isfinite(probabilities).all():
        return None
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=hits - probabilities)
    return float(np.abs(gaps).sum() / len(hits))
