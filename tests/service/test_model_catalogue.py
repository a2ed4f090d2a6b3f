"""All workers of a service serve the same bundles: read once, opened by each worker, refused by all or by none."""

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
def catalogue(repository: Path) -> Iterator[Catalogue]:
    """The catalogue of the service, with the models of the repository."""
    model_catalogue.begin(repository)
    yield model_catalogue.current()
    model_catalogue.current().close()


def cut(repository: Path, model: str = "bad") -> None:
    graph = repository / model / "1/model.onnx"
    graph.write_bytes(graph.read_bytes()[:-1])


def in_another_worker(catalogue: Catalogue, repository: Path) -> Catalogue:
    """The same catalogue in a worker that reads the files as they are now."""
    copied = copy(catalogue)
    copied.bundles = read_all(repository)
    return copied


def test_workers_open_the_bundles_that_were_read(catalogue: Catalogue, repository: Path) -> None:
    """A worker opens the bundles that were read at first, even if the folder has changed since."""
    digests = {name: versions[1].digest for name, versions in catalogue.open().models.items()}
    shutil.rmtree(repository)
    opened = catalogue.open()
    assert {name: versions[1].digest for name, versions in opened.models.items()} == digests
    assert sorted(digests) == ["bad", "good"]
    assert not opened.refused


def test_all_workers_refuse_the_bundles_that_the_first_refuses(
    catalogue: Catalogue, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The reason is that of the first worker and is logged once, even if another worker could open the bundle."""
    caplog.set_level(logging.ERROR, "gunicorn.error")
    whole = copy(catalogue)
    cut(repository)
    first = in_another_worker(catalogue, repository).open()
    (error,) = first.refused
    assert error.reason.startswith("checksum is ")
    for worker in (whole, in_another_worker(catalogue, repository)):
        opened = worker.open()
        assert list(opened.models) == ["good"]
        assert [str(refusal) for refusal in opened.refused] == [str(error)]
    assert caplog.messages == [f"A bundle is refused: {error}"]


def test_a_worker_that_cannot_open_a_served_bundle_does_not_start(
    catalogue: Catalogue, repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The exit status lets the master start another worker, while the remaining workers continue to serve."""
    whole = catalogue.bundles
    catalogue.open()
    cut(repository)
    catalogue.bundles = read_all(repository)
    with pytest.raises(DisagreementError, match=r"other workers serve: .*bad/1/model\.onnx: checksum is"):
        catalogue.open()
    with pytest.raises(SystemExit) as ended:
        wsgi.create()
    assert ended.value.code == 1
    assert "other workers continue to serve" in caplog.messages[-1]
    catalogue.bundles = whole
    assert list(catalogue.open().models) == ["bad", "good"]


def test_a_reload_logs_the_changes(catalogue: Catalogue, repository: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The log names each bundle that was changed, removed or added, by the content of the files."""
    caplog.set_level(logging.INFO, "gunicorn.error")
    cut(repository)
    shutil.rmtree(repository / "good")
    make_bundle(repository, name="new")
    model_catalogue.renew(repository)
    assert caplog.messages == ["Models, generation 2: bad/1 has changed, good/1 is gone, new/1 is new"]
    model_catalogue.renew(repository)
    assert caplog.messages[1:] == ["Models, generation 3: nothing has changed"]


@pytest.mark.parametrize("reason", ["no such folder of models", "has no bundle"])
def test_a_reload_without_models_changes_nothing(
    catalogue: Catalogue, repository: Path, caplog: pytest.LogCaptureFixture, reason: str
) -> None:
    """If the folder is missing or empty, the service continues with the models that it has."""
    shutil.rmtree(repository)
    if reason == "has no bundle":
        repository.mkdir()
    model_catalogue.renew(repository)
    assert model_catalogue.current() is catalogue
    assert not catalogue.is_superseded()
    assert sorted(catalogue.open().models) == ["bad", "good"]
    assert reason in caplog.messages[0]


def test_other_workers_see_that_a_catalogue_is_superseded() -> None:
    """The flag is visible across processes, because it is in memory that forked processes share."""
    import multiprocessing  # noqa: PLC0415

    catalogue = Catalogue([])
    context = multiprocessing.get_context("fork")
    local, remote = context.Pipe()

    def worker() -> None:
        remote.send(catalogue.is_superseded())
        remote.recv()
        remote.send(catalogue.is_superseded())

    process = context.Process(target=worker)
    process.start()
    assert local.recv() is False
    catalogue.supersede()
    local.send(None)
    assert local.recv() is True
    process.join()
    assert process.exitcode == 0
    local.close()
    remote.close()
