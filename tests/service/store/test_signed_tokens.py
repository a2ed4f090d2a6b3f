"""What is signed and sealed: any change is noticed, and nothing opens under another secret or for another purpose."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onward.service.store.signed_tokens import Seal, SealError

ONE, TWO = "1" * 32, "2" * 32


@given(st.binary(max_size=200), st.data())
def test_any_flipped_bit_of_what_is_signed_is_noticed(data: bytes, draw: st.DataObject) -> None:
    signed = Seal([ONE]).signed(data)
    assert Seal([ONE]).verified(signed) == data
    bad = bytearray(signed)
    bad[draw.draw(st.integers(0, len(bad) - 1))] ^= 1 << draw.draw(st.integers(0, 7))
    for wrong in (bytes(bad), signed[:-1], signed + b"x", b""):
        with pytest.raises(SealError):
            Seal([ONE]).verified(wrong)


@given(st.binary(max_size=200), st.data())
def test_any_changed_character_of_a_token_is_noticed(data: bytes, draw: st.DataObject) -> None:
    """And its content cannot be seen in it; the same content is another token each time."""
    token = Seal([ONE]).sealed(data, b"bound")
    assert Seal([ONE]).opened(token, b"bound") == data
    assert token != Seal([ONE]).sealed(data, b"bound")
    place = draw.draw(st.integers(0, len(token.rstrip("=")) - 2))
    other = "A" if token[place] != "A" else "B"
    for wrong in (token[:place] + other + token[place + 1 :], token[:-4], "", "é", "x"):
        with pytest.raises(SealError):
            Seal([ONE]).opened(wrong, b"bound")
    with pytest.raises(SealError):
        Seal([ONE]).opened(token, b"other")


def test_secrets_are_changed_without_a_break() -> None:
    """The first signs, each opens; once one is taken away, what it sealed is refused."""
    token, signed = Seal([ONE]).sealed(b"x", b""), Seal([ONE]).signed(b"x")
    both = Seal([TWO, ONE])
    assert (both.opened(token, b""), both.verified(signed)) == (b"x", b"x")
    for wrong in (token, both.sealed(b"x", b"")):
        with pytest.raises(SealError):
            Seal([TWO if wrong is token else ONE]).opened(wrong, b"")
    with pytest.raises(SealError):
        Seal([TWO]).verified(signed)
