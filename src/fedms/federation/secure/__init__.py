"""Secure sums: the server learns a sum over clients and no client's own addend (docs/secure-sums.md).

Bonawitz et al., Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017: pairwise
masks, a mask of its own for each client, and Shamir shares of the seeds of both.
"""
