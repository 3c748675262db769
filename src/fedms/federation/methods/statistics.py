"""No training: the linear discriminant of the federation's feature sums, with each client's label prior.

Related: FedNCM, arXiv 2306.03937; Fed3R, arXiv 2402.01423.
"""

from fedms.federation.method import Method

METHOD = Method(
    name="statistics",
    summary="no training: the discriminant of federated feature sums, with each client's label prior",
    paper="arXiv 2402.01423",
    stages=(),
    predicts="statistics",
)
