"""A model for each client, nothing of it shared.

Fine-tuning after FedAvg: Wang et al., Federated Evaluation of On-device Personalization, arXiv 1910.10252.
Ditto: Li et al., Fair and Robust Federated Learning Through Personalization, arXiv 2012.04221. Its two
problems are solved one after
the other: the global one by FedAvg, then each client's own, pulled to that.
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
    # it trains in the rounds in which the others would be asked, for the same steps
    Method(
        "local",
        "LoRA on each client alone, nothing shared",
        None,
        (replace(LOCAL, name="alone", budget="global"), LOCAL),
        "local",
    ),
)
