"""FedMS: a global expert by sparsely activated LoRA, then on each client a local expert and a gate that mixes
the two.

Wu, Li, Wang, Wang: FedMS, arXiv 2312.15926. What the gate is trained for, and all else that the abstract
leaves open, is this project's definition (docs/method.md).
"""

from fedms.federation.method import GLOBAL_SAL, LORA, Method, Stage

METHOD = Method(
    name="fedms",
    summary="global and local expert of each client, mixed by a gate whose adapter is federated",
    paper="arXiv 2312.15926",
    stages=(GLOBAL_SAL, Stage("local", "local", "local", (*LORA, "head", "gate"), ("gate",), "sal")),
    predicts="mixture",
    gate="learned",
)
