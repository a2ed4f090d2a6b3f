"""Signed records and encrypted tokens: data that leaves the service and returns.

Owns the service's secrets. The first secret signs and encrypts, and every secret verifies and decrypts. To rotate them,
put a new secret before the old one, and remove the old one once nothing signed or encrypted with it is needed any more.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import blake2b, sha256
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_SIGNED, _ENCRYPTED = b"OWX\x01", b"OWT\x01"  # Onward's exported record and token, format 1
_SALT_BYTES, _NONCE = 32, bytes(12)


class InvalidTokenError(ValueError):
    """None of the secrets has signed or encrypted the bytes for this purpose."""


class SignedTokens:
    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [secret.encode() for secret in secrets]

    def sign(self, data: bytes) -> bytes:
        """Returns the data with a signature before it: HMAC with SHA-256."""
        return _SIGNED + self._signature(self._keys[0], data) + data

    def verify(self, signed: bytes) -> bytes:
        """Returns the data that was passed to `sign`. Raises InvalidTokenError."""
        head, data = signed[: len(_SIGNED)], signed[len(_SIGNED) + sha256().digest_size :]
        signature = signed[len(_SIGNED) : len(_SIGNED) + sha256().digest_size]
        if head != _SIGNED or not any(hmac.compare_digest(self._signature(key, data), signature) for key in self._keys):
            raise InvalidTokenError
        return data

    def encrypt(self, data: bytes, bound_to: bytes) -> str:
        """Returns a token: the data encrypted with AES-256-GCM, which also authenticates it and `bound_to`.

        Each token has its own key, derived from the secret and 32 random bytes, so that no nonce is used twice.
        """
        salt = token_bytes(_SALT_BYTES)
        ciphertext = AESGCM(self._derive_key(self._keys[0], salt)).encrypt(_NONCE, data, bound_to)
        return urlsafe_b64encode(_ENCRYPTED + salt + ciphertext).decode()

    def decrypt(self, token: str, bound_to: bytes) -> bytes:
        """Returns the data that was passed to `encrypt` with the same `bound_to`. Raises InvalidTokenError."""
        try:
            content = urlsafe_b64decode(token.encode())
        except ValueError as error:
            raise InvalidTokenError from error
        if not content.startswith(_ENCRYPTED):
            raise InvalidTokenError
        salt, ciphertext = (
            content[len(_ENCRYPTED) : len(_ENCRYPTED) + _SALT_BYTES],
            content[len(_ENCRYPTED) + _SALT_BYTES :],
        )
        for key in self._keys:
            try:
                return AESGCM(self._derive_key(key, salt)).decrypt(_NONCE, ciphertext, bound_to)
            except (InvalidTag, ValueError):
                continue
        raise InvalidTokenError

    @staticmethod
    def _signature(key: bytes, data: bytes) -> bytes:
        return hmac.digest(sha256(b"sign" + key).digest(), data, "sha256")

    @staticmethod
    def _derive_key(key: bytes, salt: bytes) -> bytes:
        return blake2b(salt, key=sha256(b"seal" + key).digest(), digest_size=32).digest()
