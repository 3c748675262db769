"""FedMS with one constant in the gate's place: what every gate has to beat. The constant is chosen on validation data."""

from fedms.federation.method import GLOBAL_SAL, Method, Stage

METHOD = Method(
    name="mixture-constant",
    summary="FedMS with a constant weight, chosen on validation data, in place of the gate",
    paper=None,
    stages=(GLOBAL_SAL, Stage("local", "local", "local", ("lora", "head"), (), "sal")),
    predicts="mixture",
    gate="constant",
)
