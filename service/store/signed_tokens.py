"""What leaves the service and comes back: signed records, and states that only the service can read.

Owns the service's secrets. The first of them signs and seals, each opens: so a new one is put before an old one, which
is taken away once nothing that it sealed is wanted any more.
"""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Sequence
from hashlib import blake2b, sha256
from secrets import token_bytes

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_SIGNED, _SEALED = b"OWX\x01", b"OWT\x01"  # Onward's exported record and token, format 1
_SALT, _NONCE = 32, bytes(12)


class InvalidTokenError(ValueError):
    """Bytes that none of the secrets has signed or sealed, for this purpose."""


class SignedTokens:
    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [secret.encode() for secret in secrets]

    def sign(self, data: bytes) -> bytes:
        """The data with a signature before it: HMAC with SHA-256."""
        return _SIGNED + self._signature(self._keys[0], data) + data

    def verify(self, signed: bytes) -> bytes:
        """The data that `signed` was given. Raises InvalidTokenError."""
        head, data = signed[: len(_SIGNED)], signed[len(_SIGNED) + sha256().digest_size :]
        signature = signed[len(_SIGNED) : len(_SIGNED) + sha256().digest_size]
        if head != _SIGNED or not any(hmac.compare_digest(self._signature(key, data), signature) for key in self._keys):
            raise InvalidTokenError
        return data

    def encrypt(self, data: bytes, bound_to: bytes) -> str:
        """The data as a token: encrypted and authenticated, AES-256-GCM, and of use only with the same `bound_to`.

        Each token has a key of its own, derived from the secret and 32 random bytes, so that no nonce can come twice.
        """
        salt = token_bytes(_SALT)
        box = AESGCM(self._derived(self._keys[0], salt)).encrypt(_NONCE, data, bound_to)
        return urlsafe_b64encode(_SEALED + salt + box).decode()

    def decrypt(self, token: str, bound_to: bytes) -> bytes:
        """The data that `sealed` was given. Raises InvalidTokenError."""
        try:
            content = urlsafe_b64decode(token.encode())
        except ValueError as error:
            raise InvalidTokenError from error
        if not content.startswith(_SEALED):
            raise InvalidTokenError
        salt, box = content[len(_SEALED) : len(_SEALED) + _SALT], content[len(_SEALED) + _SALT :]
        for key in self._keys:
            try:
                return AESGCM(self._derived(key, salt)).decrypt(_NONCE, box, bound_to)
            except (InvalidTag, ValueError):
                continue
        raise InvalidTokenError

    @staticmethod
    def _signature(key: bytes, data: bytes) -> bytes:
        return hmac.digest(sha256(b"sign" + key).digest(), data, "sha256")

    @staticmethod
    def _derived(key: bytes, salt: bytes) -> bytes:
        return blake2b(salt, key=sha256(b"seal" + key).digest(), digest_size=32).digest()
