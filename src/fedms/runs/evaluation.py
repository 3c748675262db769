"""Figures of a client's predictions for labelled samples: for `fedms evaluate` and `Client.evaluate`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from fedms.core.errors import FedmsError
from fedms.core.formatting import excerpt

if TYPE_CHECKING:
    from fedms.runs.predict import Prediction

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
    calibration_error: float
    """Mean distance between probability and accuracy in `BINS` bins, weighted by samples (Guo et al. 2017,
    arXiv 1706.04599): 0 where of the predictions with probability p a share of p is right."""
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


def evaluate(classes: Sequence[str], labels: Sequence[str], predictions: Sequence[Prediction]) -> Evaluation:
    """Compare predictions with labels, which are names of classes.

    Raises:
        FedmsError: there are no samples, or not as many labels as predictions.
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    if len(labels) != len(predictions):
        raise FedmsError(f"{len(labels)} labels for {len(predictions)} inputs: each input needs one label")
    if not labels:
        raise FedmsError("there are no samples to evaluate on")
    answers = [each.label for each in predictions]
    there = [name for name in classes if name in {*labels, *answers}]
    confusion = confusion_matrix(labels, answers, labels=there)
    figures = precision_recall_fscore_support(labels, answers, labels=there, zero_division=0)
    precision, recall, f1, counts = (values.tolist() for values in figures)
    columns = zip(counts, confusion.sum(axis=0).tolist(), precision, recall, f1, strict=True)
    hits = np.array([label == answer for label, answer in zip(labels, answers, strict=True)])
    return Evaluation(
        samples=len(labels),
        accuracy=float(hits.mean()),
        macro_f1=float(np.mean(f1)),
        calibration_error=_calibration_error(np.array([each.probability for each in predictions]), hits),
        classes={name: ClassFigures(*values) for name, values in zip(there, columns, strict=True)},
        confusion=confusion.tolist(),
    )


def _calibration_error(probabilities: np.ndarray, hits: np.ndarray) -> float:
    """The expected calibration error of probabilities [n] and hits [n]."""
    bins = np.minimum((probabilities * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=hits - probabilities)
    return float(np.abs(gaps).sum() / len(hits))
