"""What a service's workers serve together: read once, opened by each, refused by all alike."""

import logging
import shutil
from collections.abc import Iterator
from copy import copy
from pathlib import Path

import pytest

from onward.model.repository import read_all
from onward.service import model_catalogue
from onward.service.model_catalogue import Catalogue, DisagreementError
from onward.service.server import wsgi
from tests.helpers.recorded_bundles import make_bundle


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    make_bundle(tmp_path / "models", name="bad")
    make_bundle(tmp_path / "models", name="good")
    return tmp_path / "models"


@pytest.fixture
def taken(repository: Path) -> Iterator[Catalogue]:
    """A catalogue of these models, the service's own."""
    model_catalogue.begin(repository)
    yield model_catalogue.current()
    model_catalogue.current().close()


def cut(repository: Path, model: str = "bad") -> None:
    graph = repository / model / "1/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])


def elsewhere(one: Catalogue, repository: Path) -> Catalogue:
    """The same catalogue in a worker that comes to see the files as they are now."""
    other = copy(one)
    other.bundles = read_all(repository)
    return other


def test_workers_open_what_was_read(taken: Catalogue, repository: Path) -> None:
    """Not what the folder has come to since."""
    digests = {name: versions[1].digest for name, versions in taken.open().models.items()}
    shutil.rmtree(repository)
    opened = taken.open()
    assert {name: versions[1].digest for name, versions in opened.models.items()} == digests
    assert sorted(digests) == ["bad", "good"]
    assert not opened.refused


def test_what_the_first_worker_refuses_all_refuse(
    taken: Catalogue, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With its reason, which is in the log once, also where another worker could open the bundle."""
    caplog.set_level(logging.ERROR, "gunicorn.error")
    whole = copy(taken)
    cut(repository)
    first = elsewhere(taken, repository).open()
    (error,) = first.refused
    assert error.reason.startswith("checksum is ")
    for worker in (whole, elsewhere(taken, repository)):
        opened = worker.open()
        assert list(opened.models) == ["good"]
        assert [str(one) for one in opened.refused] == [str(error)]
    assert caplog.messages == [f"A bundle is refused: {error}"]


def test_a_worker_that_cannot_open_what_others_serve_does_not_start(
    taken: Catalogue, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It would serve less than they do; its status lets the master start another, and the others continue to serve."""
    whole = taken.bundles
    taken.open()
    cut(repository)
    taken.bundles = read_all(repository)
    with pytest.raises(DisagreementError, match=r"other workers serve: .*bad/1/model\.onnx: checksum is"):
        taken.open()
    with pytest.raises(SystemExit) as ended:
        wsgi.create()
    assert ended.value.code == 1
    assert "other workers continue to serve" in caplog.messages[-1]
    taken.bundles = whole
    assert list(taken.open().models) == ["bad", "good"]


def test_a_reload_says_what_has_changed(taken: Catalogue, repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Bundle by bundle, by what is in the files."""
    caplog.set_level(logging.INFO, "gunicorn.error")
    cut(repository)
    shutil.rmtree(repository / "good")
    make_bundle(repository, name="new")
    model_catalogue.renew(repository)
    assert caplog.messages == ["Models, generation 2: bad/1 has changed, good/1 is gone, new/1 is new"]
    model_catalogue.renew(repository)
    assert caplog.messages[1:] == ["Models, generation 3: nothing has changed"]


@pytest.mark.parametrize("why", ["no such folder of models", "has no bundle"])
def test_a_reload_without_models_changes_nothing(
    taken: Catalogue, repository: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    """A folder that is away, or was emptied, is no reason to stop serving."""
    shutil.rmtree(repository)
    if why == "has no bundle":
        repository.mkdir()
    model_catalogue.renew(repository)
    assert model_catalogue.current() is taken
    assert not taken.is_superseded()
    assert sorted(taken.open().models) == ["bad", "good"]
    assert why in caplog.messages[0]


def test_other_workers_see_that_a_catalogue_is_superseded() -> None:
    """Across processes: the flag lies in memory that a fork shares."""
    import multiprocessing  # noqa: PLC0415

    one = Catalogue([])
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()

    def worker() -> None:
        theirs.send(one.is_superseded())
        theirs.recv()
        theirs.send(one.is_superseded())

    process = context.Process(target=worker)
    process.start()
    assert ours.recv() is False
    one.supersede()
    ours.send(None)
    assert ours.recv() is True
    process.join()
    assert process.exitcode == 0
    ours.close()
    theirs.close()
