"""Passes of a sweep: the position at which each call begins."""

from onward.service.store.sweeping import PASS_S, SweepPass


def test_a_call_continues_after_the_last_position() -> None:
    """A call continues at the position where the last call ended; the next pass begins at the first entry."""
    sweep_pass: SweepPass[int] = SweepPass()
    assert sweep_pass.begin(0) is None
    sweep_pass.end(10, is_over=False)
    assert sweep_pass.begin(1) == 10
    sweep_pass.end(13, is_over=True)
    assert sweep_pass.begin(PASS_S) is None


def test_a_pass_of_one_call_is_repeated_at_once() -> None:
    """The next sweep thus sees what another version of Onward has done with entries that this one cannot read."""
    sweep_pass: SweepPass[int] = SweepPass()
    for _ in range(3):
        assert sweep_pass.begin(5) is None
        sweep_pass.end(9, is_over=True)


def test_a_long_pass_is_begun_once_a_minute() -> None:
    """Any number of unreadable entries thus costs little; a pass also begins if the clock was set back."""
    sweep_pass: SweepPass[int] = SweepPass()
    sweep_pass.begin(100)
    sweep_pass.end(10, is_over=False)
    for now in (100, 101, 100 + PASS_S - 1):
        assert sweep_pass.begin(now) == 10
        sweep_pass.end(10, is_over=True)
    assert sweep_pass.begin(100 + PASS_S) is None
    sweep_pass.end(10, is_over=False)
    sweep_pass.begin(101 + PASS_S)
    sweep_pass.end(20, is_over=True)
    assert sweep_pass.begin(99) is None
