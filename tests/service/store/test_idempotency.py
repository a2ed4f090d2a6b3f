"""The last requests of a session, and their answers, as bytes."""

from hypothesis import given
from hypothesis import strategies as st

from onward.service.store import idempotency
from onward.service.store.idempotency import REMEMBERED, WIDEST, Known


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=80), st.sampled_from([100, 248, 2048, 10**6]))
def test_the_last_requests_are_known_with_their_answers(answers: list[bytes], step_bytes: int) -> None:
    """As many as are said to be, each with its own answer; the oldest lose theirs first, the newest has it always."""
    kept, most = b"", idempotency.most_answers(step_bytes)
    for number, answer in enumerate(answers):
        kept = idempotency.remembering(kept, f"r{number}", Known(idempotency.digest(answer), number, answer), most)
    for back, (number, answer) in enumerate(reversed(list(enumerate(answers)))):
        known = idempotency.find(kept, f"r{number}")
        if back >= REMEMBERED:
            assert known is None
            continue
        assert known is not None
        assert (known.digest, known.step) == (idempotency.digest(answer), number)
        assert known.answer in (answer, b"")
        if back == 0 or sum(map(len, answers[number:-1])) <= most:
            assert known.answer == answer
    assert len(kept) <= 1 + REMEMBERED * 28 + 2 * 3000 + most
    assert idempotency.find(kept, "another") is None


def test_answers_of_a_step_each_are_all_kept() -> None:
    """However long a step's answer is, up to a bound: whoever has 32 under way and loses them gets each one's own."""
    for size in (4, 128, 129, 248, WIDEST):
        kept = b""
        for number in range(100):
            answer = bytes([number]) * size
            kept = idempotency.remembering(
                kept, f"r{number}", Known(bytes(8), number, answer), idempotency.most_answers(size)
            )
        for number in range(100 - REMEMBERED, 100):
            assert idempotency.find(kept, f"r{number}") == Known(bytes(8), number, bytes([number]) * size)


def test_without_answers_requests_are_known_still() -> None:
    """With their steps, in their order."""
    kept = b""
    for number in range(5):
        kept = idempotency.remembering(kept, f"r{number}", Known(bytes(8), number, b"said"))
    bare = idempotency.unanswered(kept)
    assert [idempotency.find(bare, f"r{number}") for number in range(5)] == [Known(bytes(8), n, b"") for n in range(5)]
    assert idempotency.find(idempotency.remembering(bare, "r5", Known(bytes(8), 5, b"new")), "r5") == Known(
        bytes(8), 5, b"new"
    )
    assert idempotency.unanswered(b"") == b""
