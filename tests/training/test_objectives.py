"""Classification: the loss is the cross-entropy, and the score counts right predictions."""

import numpy as np
import torch

from fedms.data.federated import Samples
from fedms.training.objectives.base import Objective
from fedms.training.objectives.classification import Classification


def test_classification_compares_logits_with_the_labels_of_the_batch():
    samples = Samples("client-0/train", np.arange(4), torch.tensor([2, 0, 1, 1]))
    objective: Objective = Classification()
    targets = objective.targets(samples, np.array([3, 0]))
    assert targets.tolist() == [1, 2]
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    expected = -logits.log_softmax(1)[[0, 1], targets]
    torch.testing.assert_close(objective.loss(logits, targets, "none"), expected)
    torch.testing.assert_close(objective.loss(logits, targets), expected.mean())
    assert objective.score(logits, targets) == 1.0
