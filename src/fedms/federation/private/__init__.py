"""Differential privacy: budgets, ledgers and noise (docs/privacy.md).

Dwork and Roth, The Algorithmic Foundations of Differential Privacy, 2014; the Gaussian mechanism by its exact
privacy curve (Balle and Wang, ICML 2018, arXiv 1805.06530).
"""
