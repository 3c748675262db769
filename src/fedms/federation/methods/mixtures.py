"""A global and a local expert on each client, weighed against each other.

FedDPA: Yang et al., Dual-Personalizing Adapter for Federated Foundation Models, arXiv 2403.19211. The pairs
of both experts act in every layer. Their weight for a sample is its similarity to some of the client's own
samples.

PFL-MoE: Guo et al., PFL-MoE: Personalized Federated Learning Based on Mixture of Experts, arXiv 2012.15589.
A gate over the outputs of both experts, trained with the local expert by the likelihood of the mixture. The
whole gate is private. With `task: text` it is a router by tokens, trained on validation data as in CoMiGS:
Fan et al., On-Device Collaborative Language Modeling via a Mixture of Generalists and Specialists, arXiv
2409.13931.
"""

from dataclasses import replace

from fedms.federation.method import GLOBAL, GLOBAL_SAL, LOCAL, Method

_LOCAL_SAL = replace(LOCAL, activation="sal")

METHODS = (
    Method(
        "mixture-constant",
        "FedMS with a constant weight, chosen on validation data, in place of the gate",
        None,
        (GLOBAL_SAL, _LOCAL_SAL),
        "mixture",
        gate="constant",
    ),
    Method(
        "mixture-count",
        "FedMS with a gate from the client's label counts, nothing trained in it",
        None,
        (GLOBAL_SAL, _LOCAL_SAL),
        "mixture",
        gate="counts",
        no_text="weighs by counts of classes",
    ),
    Method(
        "feddpa",
        "global and local LoRA, weighed by likeness to own samples",
        "arXiv 2403.19211",
        (GLOBAL, LOCAL),
        "blend",
        no_text="weighs whole samples by their likeness, which a text shows at its end",
    ),
    Method(
        "pfl-moe",
        "global and local expert, a private gate over their outputs trained by the likelihood",
        "arXiv 2012.15589",
        (GLOBAL, replace(LOCAL, trains=(*LOCAL.trains, "gate"))),
        "mixture",
        gate="learned",
        settings={
            "gate.objective": "likelihood",
            "gate.network": True,
            "gate.share": "none",
            "mixture.interpolation": 1.0,
        },
    ),
)
