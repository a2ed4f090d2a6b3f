"""Where a sweep's calls begin."""

from onward.service.store.sweeping import PASS_S, SweepPass


def test_a_call_goes_on_behind_what_was_left_alone() -> None:
    """And the next pass begins at the first entry again."""
    calls: SweepPass[int] = SweepPass()
    assert calls.begin(0) is None
    calls.end(10, is_over=False)
    assert calls.begin(1) == 10
    calls.end(13, is_over=True)
    assert calls.begin(PASS_S) is None


def test_a_pass_of_one_call_is_begun_again_at_once() -> None:
    """What a version of Onward that reads it has done with it meanwhile is seen with the next sweep."""
    calls: SweepPass[int] = SweepPass()
    for _ in range(3):
        assert calls.begin(5) is None
        calls.end(9, is_over=True)


def test_a_long_pass_is_begun_once_a_minute() -> None:
    """So that entries that nobody here can handle cost little, however many they are; a clock set back is no reason."""
    calls: SweepPass[int] = SweepPass()
    calls.begin(100)
    calls.end(10, is_over=False)
    for now in (100, 101, 100 + PASS_S - 1):
        assert calls.begin(now) == 10
        calls.end(10, is_over=True)
    assert calls.begin(100 + PASS_S) is None
    calls.end(10, is_over=False)
    calls.begin(101 + PASS_S)
    calls.end(20, is_over=True)
    assert calls.begin(99) is None
