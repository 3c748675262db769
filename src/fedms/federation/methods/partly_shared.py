"""A model for each client that shares a part in every round. Both budgets are spent on the same training.

FedPer: Arivazhagan et al., Federated Learning with Personalization Layers, arXiv 1912.00818.

FedRep: Collins et al., Exploiting Shared Representations for Personalized Federated Learning, arXiv
2102.07078. First the head, then the body; here each has half of the steps of a round.

FedSA-LoRA: Guo et al., Selective Aggregation for Low-Rank Adaptation in Federated Learning, arXiv 2410.01463.
A learns what is common, and B what is special to each client. The head stays with B.

FedALT: Bian et al., FedALT: Federated Fine-Tuning through Adaptive Local Training with Rest-of-World LoRA,
arXiv 2503.11880. A client keeps its own pairs. The average of the other clients' pairs stands frozen beside
them, and a mixer in each layer weighs the two for its input.
"""

from fedms.federation.method import LORA, Method, Stage, throughout

METHODS = (
    Method(
        "fedper",
        "shared LoRA in all blocks, private head",
        "arXiv 1912.00818",
        throughout(Stage("", "global", "local", (*LORA, "head"), LORA, "all")),
        "local",
        no_text="keeps a head of its own, and the head of a language model is frozen",
    ),
    Method(
        "fedrep",
        "shared LoRA in all blocks, private head; trained in turns",
        "arXiv 2102.07078",
        throughout(Stage("", "global", "local", (*LORA, "head"), LORA, "all", phases=(("head",), LORA))),
        "local",
        no_text="keeps a head of its own, and the head of a language model is frozen",
    ),
    Method(
        "fedsa-lora",
        "A shared, B and head private",
        "arXiv 2410.01463",
        throughout(Stage("", "global", "local", (*LORA, "head"), ("A",), "all")),
        "local",
    ),
    Method(
        "fedalt",
        "own LoRA beside the frozen average of the others', weighed by a learned mixer",
        "arXiv 2503.11880",
        throughout(Stage("", "global", "local", (*LORA, "head", "mixer"), LORA, "all", average="beside")),
        "local",
    ),
)
