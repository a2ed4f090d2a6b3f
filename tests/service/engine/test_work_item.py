"""Pending calls: settled before, while and after a greenlet waits, each wakes its greenlet once."""

import gevent

from onward.service.engine.batching.batch_row import PendingCall
from onward.service.errors import OverloadedError

FAILED = OverloadedError(1)


def test_a_call_ends_with_its_last_item() -> None:
    """A call may be settled before or after a greenlet waits; without `needs_all` a failure counts as any outcome."""
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


def test_a_call_that_needs_all_ends_with_the_first_failure() -> None:
    """Later outcomes wake no greenlet a second time."""
    call = PendingCall(3, 0.0, needs_all=True)
    waiting = gevent.spawn(call.wait)
    gevent.idle()
    for _ in range(3):
        call.count_settled(FAILED)
    waiting.get(timeout=10)
    gevent.idle()


def test_a_killed_greenlet_is_not_woken() -> None:
    """An item settled later wakes neither it nor the greenlet of another call."""
    call, second_call = PendingCall(1, 0.0), PendingCall(1, 0.0)
    waiting, second_waiter = gevent.spawn(call.wait), gevent.spawn(second_call.wait)
    gevent.idle()
    waiting.kill()
    call.count_settled(FAILED)
    gevent.idle()
    assert not second_waiter.ready()
    second_call.count_settled(FAILED)
    second_waiter.get(timeout=10)
