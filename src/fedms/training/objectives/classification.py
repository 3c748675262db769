"""Classification: cross-entropy between an expert's logits and the labels."""

from __future__ import annotations

from typing import Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from fedms.data.federated import Samples


class Classification:
    """Logits [n, C] against labels [n]; the score is the number of right predictions."""

    def targets(self, samples: Samples, picks: np.ndarray) -> Tensor:
        """Labels, [len(picks)]."""
        return samples.labels[picks]

    def loss(self, outputs: Tensor, targets: Tensor, reduction: Literal["mean", "none"] = "mean") -> Tensor:
        """Cross-entropy: the mean, or one value for each sample, [n]."""
        return F.cross_entropy(outputs, targets, reduction=reduction)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Samples for which the largest logit is the label's."""
        return float((outputs.argmax(1) == targets).sum())
