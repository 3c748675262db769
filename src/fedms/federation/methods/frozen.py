"""Methods that train no LoRA pair. They learn on the features of the frozen backbone, or before its input.

FedNCM: Legate et al., Guiding The Last Layer in Federated Learning with Pre-Trained Models, arXiv 2306.03937.

Fed3R: Fani et al., Accelerating Heterogeneous Federated Learning with Closed-form Classifiers, arXiv
2406.01116. The discriminant of `statistics` is such a classifier. Each client's label prior is our addition.

FedCLIP: Lu et al., FedCLIP: Fast Generalization and Personalization for CLIP in Federated Learning, arXiv
2302.13485. Here with GELU in place of batch norm and leaky ReLU, and before the frozen head of `head.kind`.

PromptFL: Guo et al., PromptFL: Let Federated Participants Cooperatively Learn Prompts Instead of Models,
arXiv 2208.11625. Its prompts precede the class names. Our backbones have no second tower, so our prompts
precede the tokens of the sample.
"""

from fedms.federation.method import Method, Stage

METHODS = (
    Method(
        "statistics",
        "no training: the discriminant of federated feature sums, with each client's label prior",
        "arXiv 2406.01116",
        (),
        "statistics",
        label_prior=True,
        no_text="predicts classes from their feature sums",
    ),
    Method(
        "fedncm",
        "no training: the nearest federated class mean",
        "arXiv 2306.03937",
        (),
        "global",
        settings={
            "head.kind": "means",
            "statistics.second_moment": False,  # class means need no covariance
            "statistics.shrinkage": "auto",
        },
        no_text="predicts classes from their feature sums",
    ),
    Method(
        "linear-probe",
        "a federated head on frozen features",
        None,
        (Stage("global", "global", "global", ("head",), ("head",), "none"),),
        "global",
        no_text="trains the head alone, and the head of a language model is frozen",
    ),
    Method(
        "fedclip",
        "a federated attention over frozen features, before a frozen head",
        "arXiv 2302.13485",
        (Stage("global", "global", "global", ("attention",), ("attention",), "none"),),
        "global",
        no_text="trains the head alone, and the head of a language model is frozen",
    ),
    Method(
        "promptfl",
        "shared soft prompts before every sample, and a shared head",
        "arXiv 2208.11625",
        (Stage("global", "global", "global", ("prompt", "head"), ("prompt", "head"), "none"),),
        "global",
        no_text="learns soft prompts, which task: text does not have yet",
    ),
)
