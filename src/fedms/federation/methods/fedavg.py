"""One model for all clients: federated averaging of LoRA matrices and head, and its refinements.

FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks from Decentralized Data,
arXiv 1602.05629; with LoRA as in FedIT, arXiv 2305.05644.

FedProx: Li et al., Federated Optimization in Heterogeneous Networks, arXiv 1812.06127.

FFA-LoRA: Sun et al., Improving LoRA in Privacy-preserving Federated Learning, arXiv 2403.12313. A keeps its
random start, so the mean of the B is the mean of the products.

FedEx-LoRA: Singhal et al., Exact Aggregation for Federated and Efficient Fine-Tuning of Foundation Models,
arXiv 2410.09432.

FlexLoRA: Bai et al., Federated Fine-tuning of Large Language Models under Heterogeneous Tasks and Client
Resources, arXiv 2402.11505. The clients' ranks are `lora.tiers`.
"""

from dataclasses import replace

from fedms.federation.method import GLOBAL, GLOBAL_SAL, Method

METHODS = (
    Method(
        "fedavg", "federated LoRA in all blocks, one model for all", "arXiv 1602.05629", (GLOBAL,), "global"
    ),
    Method(
        "fedavg-sal",
        "federated LoRA, sparsely activated: FedMS's first stage alone",
        "arXiv 2312.15926",
        (GLOBAL_SAL,),
        "global",
    ),
    Method(
        "sal-fixed",
        "fedavg-sal that never activates more blocks than at the start",
        None,
        (GLOBAL_SAL,),
        "global",
        settings={"activation.rule": "fixed"},
    ),
    Method(
        "fedprox",
        "fedavg with a proximal term that keeps clients near what they were sent",
        "arXiv 1812.06127",
        (replace(GLOBAL, pull="sent"),),
        "global",
    ),
    Method(
        "ffa-lora",
        "fedavg with A frozen, so that averaging B is exact",
        "arXiv 2403.12313",
        (GLOBAL.without("A"),),
        "global",
    ),
    Method(
        "fedex-lora",
        "fedavg with exact aggregation: what averaging A and B loses is kept in a residual",
        "arXiv 2410.09432",
        (GLOBAL,),
        "global",
        settings={"federation.aggregation": "exact"},
    ),
    Method(
        "flexlora",
        "fedavg of the products BA, cut to each client's rank by singular value decomposition",
        "arXiv 2402.11505",
        (GLOBAL,),
        "global",
        settings={"federation.aggregation": "svd"},
    ),
    Method(
        "fedavg-prior",
        "fedavg, each client's label prior put on the logits, nothing more trained",
        None,
        (GLOBAL,),
        "global",
        label_prior=True,
        no_text="puts a label prior on logits of classes",
    ),
)
