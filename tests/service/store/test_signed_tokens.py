"""What is signed and sealed: any change is noticed, and nothing opens under another secret or for another purpose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.service.store.signed_tokens import InvalidTokenError, SignedTokens

ONE, TWO = "1" * 32, "2" * 32


@given(st.binary(max_size=200), st.data())
def test_any_flipped_bit_of_what_is_signed_is_noticed(data: bytes, draw: st.DataObject) -> None:
    signed = SignedTokens([ONE]).sign(data)
    assert SignedTokens([ONE]).verify(signed) == data
    bad = bytearray(signed)
    bad[draw.draw(st.integers(0, len(bad) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    for wrong in (bytes(bad), signed[:-1], signed + b"x", b""):
        with pytest.raises(InvalidTokenError):
            SignedTokens([ONE]).verify(wrong)


@given(st.binary(max_size=200), st.data())
def test_any_changed_character_of_a_token_is_noticed(data: bytes, draw: st.DataObject) -> None:
    """And its content cannot be seen in it; the same content is another token each time."""
    token = SignedTokens([ONE]).encrypt(data, b"bound")
    assert SignedTokens([ONE]).decrypt(token, b"bound") == data
    assert token != SignedTokens([ONE]).encrypt(data, b"bound")
    place = draw.draw(st.integers(0, len(token.rstrip("=")) - 2))
    other = "A" if token[place] != "A" else "B"
    for wrong in (token[:place] + other + token[place + 1 :], token[:-4], "", "é", "x"):
        with pytest.raises(InvalidTokenError):
            SignedTokens([ONE]).decrypt(wrong, b"bound")
    with pytest.raises(InvalidTokenError):
        SignedTokens([ONE]).decrypt(token, b"other")


def test_secrets_are_changed_without_a_break() -> None:
    """The first signs, each opens; once one is taken away, what it sealed is refused."""
    token, signed = SignedTokens([ONE]).encrypt(b"x", b""), SignedTokens([ONE]).sign(b"x")
    both = SignedTokens([TWO, ONE])
    assert (both.decrypt(token, b""), both.verify(signed)) == (b"x", b"x")
    for wrong in (token, both.encrypt(b"x", b"")):
        with pytest.raises(InvalidTokenError):
            SignedTokens([TWO if wrong is token else ONE]).decrypt(wrong, b"")
    with pytest.raises(InvalidTokenError):
        SignedTokens([TWO]).verify(signed)
