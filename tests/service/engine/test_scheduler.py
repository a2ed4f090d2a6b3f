"""The scheduler, tested with lists."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from onward.service.engine.batching.scheduler import Scheduler

FOREVER = 1e9


@dataclass(eq=False)
class Item:
    key: str
    left: int = 1
    deadline: float = FOREVER
    chunk: int = 64
    is_obsolete: bool = False

    @property
    def size(self) -> int:
        return min(self.left, self.chunk)


def run(scheduler: Scheduler[Item], now: float = 0.0) -> list[list[Item]]:
    """Runs all waiting items. Returns the batches in order."""
    batches = []
    while batch := scheduler.batch(now)[0]:
        batches.append(batch)
        for item in batch:
            item.left -= item.size
            (scheduler.put_back if item.left else scheduler.finish)(item)
    return batches


def test_waiting_items_run_at_once() -> None:
    """Different sessions of like length share a batch, in the order of arrival."""
    scheduler = Scheduler[Item](max_rows=10, max_cells=10_000)
    items = [Item(name) for name in "dacb"]
    for item in items:
        scheduler.add(item)
    assert run(scheduler) == [items]
    assert scheduler.waiting == 0


def test_a_session_has_one_row_in_a_batch_and_keeps_its_order() -> None:
    """Items of one session run in the order of arrival, one per batch; items of other sessions may run before them."""
    scheduler = Scheduler[Item](max_rows=10, max_cells=10_000)
    first, second, third, beside = Item("a"), Item("a"), Item("a"), Item("b")
    for item in (first, second, third, beside):
        scheduler.add(item)
    assert run(scheduler) == [[first, beside], [second], [third]]


def test_a_batch_has_at_most_its_rows() -> None:
    scheduler = Scheduler[Item](max_rows=3, max_cells=10_000)
    items = [Item(str(number)) for number in range(7)]
    for item in items:
        scheduler.add(item)
    assert run(scheduler) == [items[:3], items[3:6], items[6:]]


def test_a_catch_up_does_not_hold_up_single_steps() -> None:
    """Between two chunks of 10,000 steps, every waiting single step has its turn."""
    scheduler = Scheduler[Item](max_rows=10, max_cells=10_000)
    scheduler.add(Item("long", left=10_000))
    for name in "abc":
        scheduler.add(Item(name))
    batches = run(scheduler)
    assert [[item.key for item in batch] for batch in batches[:3]] == [["long"], ["a", "b", "c"], ["long"]]


def test_late_items_are_dropped_before_they_run() -> None:
    """An item whose deadline has passed never runs, and the one behind it does."""
    scheduler = Scheduler[Item](max_rows=10, max_cells=10_000)
    late, fine, alone = Item("a", deadline=5.0), Item("a"), Item("b", deadline=5.0)
    for item in (late, fine, alone):
        scheduler.add(item)
    assert scheduler.batch(5.0) == ([fine], [late, alone])
    scheduler.finish(fine)
    assert scheduler.waiting == 0
    assert scheduler.batch(6.0) == ([], [])


def test_obsolete_items_are_dropped_before_they_run() -> None:
    """An item whose client no longer waits takes no row of a batch."""
    scheduler = Scheduler[Item](max_rows=10, max_cells=10_000)
    obsolete, fine = Item("a", is_obsolete=True), Item("b")
    scheduler.add(obsolete)
    scheduler.add(fine)
    assert scheduler.batch(0.0) == ([fine], [obsolete])


ITEMS = st.lists(st.tuples(st.sampled_from("abcdefg"), st.integers(1, 300)), max_size=60)


@given(ITEMS, st.integers(1, 8))
def test_every_item_runs_to_its_end(drawn: list[tuple[str, int]], max_rows: int) -> None:
    """No item is lost or run twice; padding stays within a quarter; each session's items finish in order."""
    scheduler = Scheduler[Item](max_rows, max_cells=10_000)
    items = [Item(key, left) for key, left in drawn]
    sizes: dict[Item, int] = {item: item.left for item in items}
    for item in items:
        scheduler.add(item)
    done: dict[Item, int] = dict.fromkeys(items, 0)
    order: list[Item] = []
    while batch := scheduler.batch(0.0)[0]:
        assert len({item.key for item in batch}) == len(batch) <= max_rows
        longest = max(item.size for item in batch)
        assert sum(longest - item.size for item in batch) <= 0.25 * longest * len(batch)
        for item in batch:
            done[item] += item.size
            item.left -= item.size
            if item.left:
                scheduler.put_back(item)
            else:
                order.append(item)
                scheduler.finish(item)
    assert done == sizes
    assert scheduler.waiting == 0
    for key in "abcdefg":
        assert [item for item in order if item.key == key] == [item for item in items if item.key == key]


@given(st.lists(st.integers(1, 200), min_size=1, max_size=20))
def test_no_session_waits_longer_than_a_round(lengths: list[int]) -> None:
    """Sessions take turns: between two turns of one session, no other session has more than two."""
    scheduler = Scheduler[Item](max_rows=4, max_cells=10_000)
    for number, left in enumerate(lengths):
        scheduler.add(Item(str(number), left=left * 10))
    since: dict[str, int] = {}
    while batch := scheduler.batch(0.0)[0]:
        for item in batch:
            for key in since:
                since[key] += key != item.key
            since[item.key] = 0
            item.left -= item.size
            if item.left:
                scheduler.put_back(item)
            else:
                scheduler.finish(item)
                del since[item.key]
        assert all(turns <= 2 * len(lengths) for turns in since.values())


@given(ITEMS, st.integers(1, 8), st.integers(1, 400))
def test_limits_hold_and_nothing_starves(drawn: list[tuple[str, int]], max_rows: int, max_cells: int) -> None:
    """Batches keep the limits of rows, cells and padding, and each contains the session that has waited longest."""
    scheduler = Scheduler[Item](max_rows, max_cells)
    items = [Item(key, left) for key, left in drawn]
    for item in items:
        scheduler.add(item)
    turns = list(dict.fromkeys(item.key for item in items))
    while batch := scheduler.batch(0.0)[0]:
        longest = max(item.size for item in batch)
        assert len(batch) <= max_rows
        assert len(batch) == 1 or len(batch) * longest <= max_cells
        assert sum(longest - item.size for item in batch) < 0.25 * longest * len(batch)
        assert turns[0] in [item.key for item in batch]
        for item in batch:
            turns.remove(item.key)
            item.left -= item.size
            (scheduler.put_back if item.left else scheduler.finish)(item)
            if item.left or any(candidate.left and candidate.key == item.key for candidate in items):
                turns.append(item.key)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.booleans(), st.integers(0, 3)), max_size=30))
def test_late_and_obsolete_items_never_run(drawn: list[tuple[str, bool, int]]) -> None:
    """An item either runs or is dropped, once; it is dropped if it is late or obsolete when its turn comes."""
    scheduler = Scheduler[Item](max_rows=2, max_cells=100)
    items = [Item(key, is_obsolete=is_obsolete, deadline=deadline) for key, is_obsolete, deadline in drawn]
    for item in items:
        scheduler.add(item)
    ran: list[Item] = []
    dropped: list[Item] = []
    now = 0.0
    while any(taken := scheduler.batch(now)):
        batch, late = taken
        assert all(not item.is_obsolete and item.deadline > now for item in batch)
        assert all(item.is_obsolete or item.deadline <= now for item in late)
        ran += batch
        dropped += late
        for item in batch:
            scheduler.finish(item)
        now += 1
    assert sorted(map(id, ran + dropped)) == sorted(map(id, items))
    assert scheduler.waiting == 0
