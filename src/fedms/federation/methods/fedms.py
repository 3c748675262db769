"""FedMS: a global expert by sparsely activated LoRA; then a local expert and a gate on each client.

Wu, Li, Wang, Wang: FedMS, arXiv 2312.15926. The abstract does not say what the gate is trained for. This and
all other open questions follow the definition of this project (docs/method.md).
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
