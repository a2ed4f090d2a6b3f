"""The binary list of a session's last requests and their answers, by which retries are recognised."""

from hypothesis import given
from hypothesis import strategies as st

from onward.service.store import idempotency
from onward.service.store.idempotency import MAX_REQUESTS, MAX_STEP_ANSWER_BYTES, AppliedRequest


@given(st.lists(st.binary(min_size=1, max_size=3000), max_size=80), st.sampled_from([100, 248, 2048, 10**6]))
def test_the_last_requests_are_found_with_their_answers(answers: list[bytes], step_bytes: int) -> None:
    """The last MAX_REQUESTS are found; the oldest lose their answers first, and the newest always has its answer."""
    stored, limit_bytes = b"", idempotency.max_answer_bytes(step_bytes)
    for number, answer in enumerate(answers):
        request = AppliedRequest(idempotency.digest(answer), number, answer)
        stored = idempotency.remember(stored, f"r{number}", request, limit_bytes)
    for age, (number, answer) in enumerate(reversed(list(enumerate(answers)))):
        found = idempotency.find(stored, f"r{number}")
        if age >= MAX_REQUESTS:
            assert found is None
            continue
        assert found is not None
        assert (found.digest, found.step) == (idempotency.digest(answer), number)
        assert found.answer in (answer, b"")
        if age == 0 or sum(map(len, answers[number:-1])) <= limit_bytes:
            assert found.answer == answer
    assert len(stored) <= 1 + MAX_REQUESTS * 28 + 2 * 3000 + limit_bytes
    assert idempotency.find(stored, "another") is None


def test_all_answers_of_one_step_are_stored() -> None:
    """A client that loses MAX_REQUESTS requests in flight gets each answer, up to MAX_STEP_ANSWER_BYTES a step."""
    for size in (4, 128, 129, 248, MAX_STEP_ANSWER_BYTES):
        stored = b""
        for number in range(100):
            answer = bytes([number]) * size
            stored = idempotency.remember(
                stored, f"r{number}", AppliedRequest(bytes(8), number, answer), idempotency.max_answer_bytes(size)
            )
        for number in range(100 - MAX_REQUESTS, 100):
            assert idempotency.find(stored, f"r{number}") == AppliedRequest(bytes(8), number, bytes([number]) * size)


def test_requests_are_found_after_their_answers_are_dropped() -> None:
    """Dropping answers keeps the requests' steps and order, and later requests are stored with their answers."""
    stored = b""
    for number in range(5):
        stored = idempotency.remember(stored, f"r{number}", AppliedRequest(bytes(8), number, b"answer"))
    stored = idempotency.without_answers(stored)
    assert [idempotency.find(stored, f"r{number}") for number in range(5)] == [
        AppliedRequest(bytes(8), n, b"") for n in range(5)
    ]
    assert idempotency.find(
        idempotency.remember(stored, "r5", AppliedRequest(bytes(8), 5, b"new")), "r5"
    ) == AppliedRequest(bytes(8), 5, b"new")
    assert idempotency.without_answers(b"") == b""
