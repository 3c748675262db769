"""The primitives of secure sums: X25519, HKDF with SHA-256, ChaCha20 and ChaCha20-Poly1305.

`cryptography` is imported when it is first used, since only secure sums need it.
"""

from __future__ import annotations

import hashlib
import hmac

import numpy as np

from fedms.core.errors import ConfigError


def require_ciphers(key: str) -> None:
    """Raise ConfigError where the package `cryptography` is not installed, which this key needs."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        need = "needs the package cryptography; install the extra: pip install 'fedms[privacy]'"
        raise ConfigError(f"{key}: {need}") from None


def public_key(private: bytes) -> bytes:
    """The X25519 public key of 32 random bytes."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    return bytes(X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw())


def agreed(private: bytes, public: bytes, purpose: str) -> bytes:
    """The 32 bytes that both sides of a pair of keys derive for a purpose.

    Raises:
        ValueError: it is no public key.
    """
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    key = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    return bytes(HKDF(SHA256(), 32, None, purpose.encode()).derive(key))


def stream(seed: bytes, name: str, count: int) -> np.ndarray:
    """Pseudorandom integers mod 2^32 of a seed for the array of this name: uint32 [count]."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

    key = hmac.new(seed, name.encode(), hashlib.sha256).digest()  # each array has a key of its own
    cipher = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * count)), dtype="<u4")


def sealed(key: bytes, text: bytes, about: str) -> bytes:
    """Encrypted and authenticated. A key must seal one text only: the nonce is fixed."""
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    return bytes(ChaCha20Poly1305(key).encrypt(bytes(12), text, about.encode()))


def unsealed(key: bytes, data: bytes, about: str) -> bytes | None:
    """The text; None where the data were not sealed with this key, for this purpose."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

    try:
        return bytes(ChaCha20Poly1305(key).decrypt(bytes(12), data, about.encode()))
    except InvalidTag:
        return None
