"""Turns of the event loop: long work lets the rest of its worker run in between."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gevent
import pytest

from onward.model.repository import open_all
from onward.model.runner import StepModel
from onward.service.engine.event_loop import AT_ONCE, LoopTurns, in_loop_turns
from onward.service.engine.input_parsing import PIECE, InputParser
from onward.service.errors import InvalidInputError
from tests.helpers.recorded_bundles import make_bundle

MOST = 100_000


@contextmanager
def counting(value: Callable[[], Any] = lambda: None) -> Iterator[list[Any]]:
    """Yields a list of what the function returns in each turn that another greenlet has meanwhile."""
    seen: list[Any] = []

    def beside() -> None:
        turns = LoopTurns()
        while True:
            seen.append(value())
            turns.take()

    greenlet = gevent.spawn(beside)
    yield seen
    greenlet.kill()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> StepModel:
    folder = tmp_path_factory.mktemp("models")
    make_bundle(folder, name="tiny")
    return open_all(folder).models["tiny"][1]


def test_few_items_take_no_turn() -> None:
    """Short lists are returned as they are."""
    few = list(range(AT_ONCE))
    assert in_loop_turns(few) is few


def test_items_are_yielded_a_few_in_each_turn() -> None:
    """Other greenlets run between the batches of a long iteration, and no item is lost."""
    done: list[int] = []
    with counting(lambda: len(done)) as seen:
        done.extend(in_loop_turns(range(1000)))
    assert done == list(range(1000))
    assert len(seen) >= 1000 // AT_ONCE


def test_long_inputs_are_read_in_pieces(model: StepModel) -> None:
    """Long inputs, as bytes and as numbers alike, are parsed before they wait in a queue."""
    parser = InputParser(MOST)
    for inputs in ([10.0] * MOST, [[10.0]] * MOST, bytes(4 * MOST)):
        with counting() as seen:
            _, array = parser.measure(model, inputs)
        assert array is not None
        assert array.shape == (MOST, 1)
        assert len(seen) >= MOST // PIECE


def test_a_fault_in_a_later_piece_is_named_by_its_index(model: StepModel) -> None:
    """The index in the error message counts from the start of all inputs."""
    inputs: list[Any] = [10.0] * MOST
    inputs[-1] = None
    with pytest.raises(InvalidInputError, match=rf"inputs\[{MOST - 1}\]\[0\]: null"):
        InputParser(MOST).parse(model, inputs)
