"""Each client alone: no communication. It trains in the rounds in which the others would be asked, for the same steps."""

from fedms.federation.method import Method, Stage

METHOD = Method(
    name="local",
    summary="LoRA on each client alone, nothing shared",
    paper=None,
    stages=(
        Stage("alone", "global", "local", ("lora", "head"), (), "all"),
        Stage("local", "local", "local", ("lora", "head"), (), "all"),
    ),
    predicts="local",
)
