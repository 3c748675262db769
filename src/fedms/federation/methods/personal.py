"""A model for each client that shares nothing.

Fine-tuning after FedAvg: Wang et al., Federated Evaluation of On-device Personalization, arXiv 1910.10252.

Ditto: Li et al., Fair and Robust Federated Learning Through Personalization, arXiv 2012.04221. Its two
problems are solved one after the other: the global one by FedAvg, then the local one of each client, pulled
to the global solution.
"""

from dataclasses import replace

from fedms.federation.method import GLOBAL, LOCAL, Method

METHODS = (
    Method(
        "fedavg-finetune",
        "fedavg, then fine-tuned on each client",
        "arXiv 1910.10252",
        (GLOBAL, LOCAL),
        "local",
    ),
    Method(
        "ditto",
        "fedavg, then on each client a model that a proximal term pulls to the global one",
        "arXiv 2012.04221",
        (GLOBAL, replace(LOCAL, pull="start")),
        "local",
    ),
    # it spends the global rounds on local training, so that all methods train for the same number of steps
    Method(
        "local",
        "LoRA on each client alone, nothing shared",
        None,
        (replace(LOCAL, name="alone", budget="global"), LOCAL),
        "local",
    ),
)
