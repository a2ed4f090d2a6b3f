"""The last requests of a session, and their answers, as bytes."""

from hypothesis import given
from hypothesis import strategies as st

from onward.service.store import idempotency
from onward.service.store.idempotency import MAX_REQUESTS, MAX_STEP_ANSWER_BYTES, AppliedRequest


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=80), st.sampled_from([100, 248, 2048, 10**6]))
def test_the_last_requests_are_known_with_their_answers(answers: list[bytes], step_bytes: int) -> None:
    """As many as are said to be, each with its own answer; the oldest lose theirs first, the newest has it always."""
    kept, most = b"", idempotency.max_answer_bytes(step_bytes)
    for number, answer in enumerate(answers):
        kept = idempotency.remember(
            kept, f"r{number}", AppliedRequest(idempotency.digest(answer), number, answer), most
        )
    for back, (number, answer) in enumerate(reversed(list(enumerate(answers)))):
        known = idempotency.find(kept, f"r{number}")
        if back >= MAX_REQUESTS:
            assert known is None
            continue
        assert known is not None
        assert (known.digest, known.step) == (idempotency.digest(answer), number)
        assert known.answer in (answer, b"")
        if back == 0 or sum(map(len, answers[number:-1])) <= most:
            assert known.answer == answer
    assert len(kept) <= 1 + MAX_REQUESTS * 28 + 2 * 3000 + most
    assert idempotency.find(kept, "another") is None


def test_answers_of_a_step_each_are_all_kept() -> None:
    """However long a step's answer is, up to a bound: whoever has 32 under way and loses them gets each one's own."""
    for size in (4, 128, 129, 248, MAX_STEP_ANSWER_BYTES):
        kept = b""
        for number in range(100):
            answer = bytes([number]) * size
            kept = idempotency.remember(
                kept, f"r{number}", AppliedRequest(bytes(8), number, answer), idempotency.max_answer_bytes(size)
            )
        for number in range(100 - MAX_REQUESTS, 100):
            assert idempotency.find(kept, f"r{number}") == AppliedRequest(bytes(8), number, bytes([number]) * size)


def test_without_answers_requests_are_known_still() -> None:
    """With their steps, in their order."""
    kept = b""
    for number in range(5):
        kept = idempotency.remember(kept, f"r{number}", AppliedRequest(bytes(8), number, b"said"))
    bare = idempotency.without_answers(kept)
    assert [idempotency.find(bare, f"r{number}") for number in range(5)] == [
        AppliedRequest(bytes(8), n, b"") for n in range(5)
    ]
    assert idempotency.find(
        idempotency.remember(bare, "r5", AppliedRequest(bytes(8), 5, b"new")), "r5"
    ) == AppliedRequest(bytes(8), 5, b"new")
    assert idempotency.without_answers(b"") == b""
