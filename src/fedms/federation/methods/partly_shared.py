"""A model for each client, part of which is shared from the first round to the last.

Both budgets are spent on the same.

FedPer: Arivazhagan et al., Federated Learning with Personalization Layers, arXiv 1912.00818.
FedRep: Collins et al., Exploiting Shared Representations for Personalized Federated Learning, arXiv
2102.07078: first the head, then the body; here each has half of a round's steps. FedSA-LoRA: Guo et al.,
Selective Aggregation for Low-Rank Adaptation in Federated Learning, arXiv 2410.01463: A learns what is
common, B what is each client's own; the head stays with B.
FedALT: Bian et al., FedALT: Federated Fine-Tuning through Adaptive Local Training with Rest-of-World LoRA,
arXiv 2503.11880: a client keeps its own pairs, and beside them, frozen, the average of the other clients'; a
mixer at each layer weighs the two for its input.
"""

from fedms.federation.method import LORA, Method, Stage, throughout

METHODS = (
    Method(
        "fedper",
        "shared LoRA in all blocks, private head",
        "arXiv 1912.00818",
        throughout(Stage("", "global", "local", (*LORA, "head"), LORA, "all")),
        "local",
    ),
    Method(
        "fedrep",
        "shared LoRA in all blocks, private head; trained in turns",
        "arXiv 2102.07078",
        throughout(Stage("", "global", "local", (*LORA, "head"), LORA, "all", phases=(("head",), LORA))),
        "local",
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
