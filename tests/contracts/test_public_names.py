"""No public name changes by accident: not by a renamed file, module, class or function."""

from onward.service.app import OPERATIONS
from tests.contracts.public_names import LIST, names


def test_public_names_are_those_of_the_committed_list() -> None:
    """A missing name breaks programs of users. A new name must be added to the list, which a command writes:
    `python -m tests.contracts.public_names > tests/contracts/public_names.txt`.
    """
    assert names() == LIST.read_text().splitlines()


def test_every_operation_has_an_id_of_its_own() -> None:
    """Generated clients name their methods by the operation ids, so the ids are unique."""
    ids = [operation.operation_id for operation in OPERATIONS]
    assert len(set(ids)) == len(ids)
