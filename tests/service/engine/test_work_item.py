"""A call and those who wait for it: settled before, while and after it is waited for, each is woken once."""

import gevent

from onward.service.engine.batching.work_item import PendingCall
from onward.service.errors import OverloadedError

FAILED = OverloadedError(1)


def test_a_call_is_over_with_its_last_item() -> None:
    """In whatever order it is waited for and settled; a failure is an end like another where not all are needed."""
    for settle_first in (True, False):
        call = PendingCall(2, 0.0)
        if settle_first:
            call.count_settled(FAILED)
            call.count_settled(FAILED)
        waiting = gevent.spawn(call.wait)
        gevent.idle()
        if not settle_first:
            call.count_settled(FAILED)
            gevent.idle()
            assert not waiting.ready()
            call.count_settled(FAILED)
        waiting.get(timeout=10)


def test_of_a_call_that_needs_all_the_first_failure_is_the_end() -> None:
    """Those that come after it wake nobody a second time."""
    call = PendingCall(3, 0.0, needs_all=True)
    waiting = gevent.spawn(call.wait)
    gevent.idle()
    for _ in range(3):
        call.count_settled(FAILED)
    waiting.get(timeout=10)
    gevent.idle()


def test_whoever_was_killed_while_it_waited_is_not_woken() -> None:
    """What is settled later goes nowhere, and to no other."""
    call, other = PendingCall(1, 0.0), PendingCall(1, 0.0)
    waiting, beside = gevent.spawn(call.wait), gevent.spawn(other.wait)
    gevent.idle()
    waiting.kill()
    call.count_settled(FAILED)
    gevent.idle()
    assert not beside.ready()
    other.count_settled(FAILED)
    beside.get(timeout=10)
