"""Signed and encrypted tokens: any change is detected, and no token opens under another secret or context."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.service.store.signed_tokens import InvalidTokenError, SignedTokens

OLD, NEW = "1" * 32, "2" * 32


@given(st.binary(max_size=200), st.data())
def test_any_flipped_bit_of_signed_data_is_detected(data: bytes, draw: st.DataObject) -> None:
    """Signed data with a flipped, a missing or an additional byte is refused."""
    signed = SignedTokens([OLD]).sign(data)
    assert SignedTokens([OLD]).verify(signed) == data
    flipped = bytearray(signed)
    flipped[draw.draw(st.integers(0, len(flipped) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    for forged in (bytes(flipped), signed[:-1], signed + b"x", b""):
        with pytest.raises(InvalidTokenError):
            SignedTokens([OLD]).verify(forged)


@given(st.binary(max_size=200), st.data())
def test_any_changed_character_of_a_token_is_detected(data: bytes, draw: st.DataObject) -> None:
    """A changed token is refused, and encrypting the same content twice gives two different tokens."""
    token = SignedTokens([OLD]).encrypt(data, b"bound")
    assert SignedTokens([OLD]).decrypt(token, b"bound") == data
    assert token != SignedTokens([OLD]).encrypt(data, b"bound")
    index = draw.draw(st.integers(0, len(token.rstrip("=")) - 2))
    character = "A" if token[index] != "A" else "B"
    for forged in (token[:index] + character + token[index + 1 :], token[:-4], "", "é", "x"):
        with pytest.raises(InvalidTokenError):
            SignedTokens([OLD]).decrypt(forged, b"bound")
    with pytest.raises(InvalidTokenError):
        SignedTokens([OLD]).decrypt(token, b"other")


def test_secrets_are_rotated_without_interruption() -> None:
    """The first secret signs and encrypts, every secret opens; tokens of a secret that was removed are refused."""
    token, signed = SignedTokens([OLD]).encrypt(b"x", b""), SignedTokens([OLD]).sign(b"x")
    both = SignedTokens([NEW, OLD])
    assert (both.decrypt(token, b""), both.verify(signed)) == (b"x", b"x")
    for refused in (token, both.encrypt(b"x", b"")):
        with pytest.raises(InvalidTokenError):
            SignedTokens([NEW if refused is token else OLD]).decrypt(refused, b"")
    with pytest.raises(InvalidTokenError):
        SignedTokens([NEW]).verify(signed)
