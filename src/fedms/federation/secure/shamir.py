"""Shamir's secret sharing (How to Share a Secret, CACM 1979) of 32 bytes, over the field of 2^521 - 1."""

from __future__ import annotations

import secrets
from collections.abc import Mapping

PRIME = 2**521 - 1
BYTES = 66
"""Of a share."""


def split(secret: bytes, holders: int, threshold: int) -> list[bytes]:
    """Shares for holders 1, 2, ...; `threshold` of them give the secret, and fewer say nothing of it."""
    polynomial = [int.from_bytes(secret, "big"), *(secrets.randbelow(PRIME) for _ in range(threshold - 1))]
    shares = []
    for x in range(1, holders + 1):
        y = 0
        for coefficient in reversed(polynomial):
            y = (y * x + coefficient) % PRIME
        shares.append(y.to_bytes(BYTES, "big"))
    return shares


def join(shares: Mapping[int, bytes]) -> bytes | None:
    """The secret of 32 bytes from enough shares, by holder; None where the shares belong to none."""
    secret = 0
    for x, share in shares.items():
        over, under = 1, 1
        for other in shares:
            if other != x:
                over, under = over * other % PRIME, under * (other - x) % PRIME
        secret = (secret + int.from_bytes(share, "big") * over * pow(under, -1, PRIME)) % PRIME
    return secret.to_bytes(BYTES, "big")[-32:] if secret < 2**256 else None
