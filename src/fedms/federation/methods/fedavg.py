"""Federated averaging of LoRA matrices and head: one model for all.

McMahan et al.: Communication-Efficient Learning of Deep Networks from Decentralized Data, arXiv 1602.05629; with LoRA as in
FedIT, arXiv 2305.05644.
"""

from fedms.federation.method import GLOBAL, GLOBAL_SAL, Method, Stage

METHOD = Method("fedavg", "federated LoRA in all blocks, one model for all", "arXiv 1602.05629", (GLOBAL,), "global")

SAL = Method(
    "fedavg-sal",
    "federated LoRA, sparsely activated: the first stage of FedMS alone",
    "arXiv 2312.15926",
    (GLOBAL_SAL,),
    "global",
)

FINETUNE = Method(
    "fedavg-finetune",
    "federated LoRA in all blocks, then fine-tuned on each client",
    "arXiv 1909.12488",
    (GLOBAL, Stage("local", "local", "local", ("lora", "head"), (), "all")),
    "local",
)
