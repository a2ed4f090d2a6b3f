"""Ctrl-C, a full disk and a reader that has gone end every command with its status and at most one line.

Each command runs as a process. The commands are those of the table in `onward.__main__`, so that none is forgotten.
"""

import os
import pty
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import IO, Any

import pytest

from onward.__main__ import SECTIONS, SERVICE_COMMANDS
from onward.client.sync_client import Client
from tests.e2e.server import Server
from tests.helpers.reference_loop import ROOT, ZOO

PULSE = str(ZOO / "pulse/1")
COMMANDS = [name for names in SECTIONS.values() for name in names]
TRAINED = {"train", "tune", "export", "evaluate", "inspect"}
"""The commands that need the extra `train`."""
INTERRUPTED = (130, "onward: interrupted\n")
FULL = (1, "onward: the output cannot be written: No space left on device\n")
GONE = (141, "")
ARGUMENTS = {
    "models": [],
    "sessions": [],
    "predict": ["--model", "pulse", "{steps}"],
    "stream": ["--model", "pulse", "{steps}"],
    "forecast": ["--session", "ends", "--horizon", "3"],
    "generate": ["--session", "ends", "--horizon", "3"],
    "load": ["--model", "pulse", "--seconds", "0.2", "--sessions", "1"],
    "train": ["{fifo}"],
    "tune": ["{fifo}"],
    "export": ["{fifo}"],
    "evaluate": [PULSE, "{steps}", "--config", "{fifo}"],
    "verify": ["{bundle}"],
    "inspect": ["{bundle}"],
}
"""The arguments with which each command but `serve` prints something, or waits for a file that is a pipe."""

RUNNING: "list[subprocess.Popen[str]]" = []
CALLING = list(SERVICE_COMMANDS)
READING = [
    pytest.param(name, marks=[pytest.mark.train] if name in TRAINED else [])
    for name in COMMANDS
    if name not in {*CALLING, "serve"}
]


def started(
    *arguments: str, url: str = "", settings: dict[str, str] | None = None, **options: Any
) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ONWARD_")}
    process = subprocess.Popen(
        [sys.executable, "-m", "onward", *arguments], cwd=ROOT, text=True, stderr=subprocess.PIPE, **options,
        env=environment | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ONWARD_URL": url} | (settings or {}),
    )  # fmt: skip
    RUNNING.append(process)
    return process


@pytest.fixture(autouse=True)
def _ends_what_it_starts() -> Iterator[None]:
    """The processes of a test end with it, also if it fails."""
    yield
    while RUNNING:
        with RUNNING.pop() as process:
            process.terminate()


def ended(process: "subprocess.Popen[str]") -> tuple[int, str]:
    """Returns the exit status of the process and its stderr."""
    _, error = process.communicate()
    return process.returncode, error


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("service")) as running:
        with Client(running.url) as client:
            client.session("pulse", "ends", inputs=[515.0], keep=True)
        yield running


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Steps, a pipe in place of a configuration, and a bundle whose manifest is a pipe."""
    (tmp_path / "steps.ndjson").write_text("515.0\n514.0\n")
    (tmp_path / "bundle").mkdir()
    for name in ("settings.toml", "bundle/manifest.json"):
        os.mkfifo(tmp_path / name)
    return {
        "steps": str(tmp_path / "steps.ndjson"),
        "fifo": str(tmp_path / "settings.toml"),
        "bundle": str(tmp_path / "bundle"),
    }


def filled(name: str, files: dict[str, str]) -> list[str]:
    return [argument.format(**files) for argument in ARGUMENTS[name]]


@pytest.fixture
def full() -> Iterator[IO[bytes]]:
    with Path("/dev/full").open("wb") as device:
        yield device


@pytest.fixture
def unread() -> Iterator[int]:
    """The end for writing of a pipe whose reader has gone."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


def test_every_command_is_tried() -> None:
    assert set(ARGUMENTS) | {"serve"} == set(COMMANDS)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_help_of_every_command_may_not_find_its_reader(name: str, full: IO[bytes], unread: int) -> None:
    processes = [started(*filter(None, [name]), "--help", stdout=output) for output in (full, unread)]
    assert [ended(process) for process in processes] == [FULL, GONE]


@pytest.mark.parametrize("name", CALLING)
def test_the_output_of_a_command_may_not_find_its_reader(
    name: str, server: Server, files: dict[str, str], full: IO[bytes], unread: int
) -> None:
    processes = [started(name, *filled(name, files), url=server.url, stdout=output) for output in (full, unread)]
    assert [ended(process) for process in processes] == [FULL, GONE]


@pytest.mark.parametrize("name", ["verify", pytest.param("inspect", marks=pytest.mark.train)])
def test_the_output_about_a_bundle_may_not_find_its_reader(name: str, full: IO[bytes], unread: int) -> None:
    processes = [started(name, PULSE, stdout=output) for output in (full, unread)]
    assert [ended(process) for process in processes] == [FULL, GONE]


@pytest.mark.train
def test_the_output_of_a_run_may_not_find_its_reader(tmp_path: Path, full: IO[bytes], unread: int) -> None:
    """`train` prints what comes of a run; `tune` does so while it runs."""
    (tmp_path / "wave.csv").write_text("level\n" + "".join(f"{step % 7}\n" for step in range(300)))
    config = tmp_path / "wave.toml"
    config.write_text(
        '[data]\npath = "wave.csv"\ntargets = ["level"]\n[model]\nunits = 2\n[train]\nepochs = 1\nwindow = 20\n'
        '[output]\nrepository = "models"\n[tune.search]\n"model.units" = [2, 3]\n'
    )
    train = started("train", str(config), "--quiet", stdout=full)
    tune = started("tune", str(config), "--trials", "1", stdout=unread)
    assert ended(train) == FULL
    status, log = ended(tune)
    assert status == GONE[0]
    assert "Traceback" not in log


@pytest.mark.parametrize("name", CALLING)
def test_ctrl_c_ends_a_command_that_waits_for_the_service(name: str, files: dict[str, str]) -> None:
    """The service accepts the connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        process = started(name, *filled(name, files), url=url, stdout=subprocess.DEVNULL)
        connection, _ = listener.accept()
        with connection:
            assert connection.recv(1)
            process.send_signal(signal.SIGINT)
            assert ended(process) == INTERRUPTED


@pytest.mark.parametrize("name", READING)
def test_ctrl_c_ends_a_command_that_reads_a_file(name: str, files: dict[str, str]) -> None:
    """The file is a pipe: once it is open for writing, the command reads it."""
    process = started(name, *filled(name, files), stdout=subprocess.DEVNULL)
    pipe = files["fifo"] if files["fifo"] in filled(name, files) else f"{files['bundle']}/manifest.json"
    with Path(pipe).open("w"):
        _wait_until_it_reads(process.pid, "pipe_read")
        process.send_signal(signal.SIGINT)
        assert ended(process) == INTERRUPTED


@pytest.mark.parametrize("name", ["predict", "stream"])
def test_ctrl_c_ends_a_command_that_waits_for_a_table(name: str, server: Server) -> None:
    """The table comes from a pipe that stays open; `stream` has read its first row by polars."""
    reader, writer = os.pipe()
    with closing(os.fdopen(writer, "wb", buffering=0)) as table:
        process = started(
            name, "--model", "pulse", "--series", "a", "-", url=server.url, stdin=reader, stdout=subprocess.PIPE
        )
        os.close(reader)
        table.write(b"recording,sample,ppg\na,0,515.0\n")
        assert process.stdout is not None
        if name == "stream":
            assert process.stdout.readline()
        _wait_until_it_reads(process.pid, "pipe_read")
        process.send_signal(signal.SIGINT)
        status, log = ended(process)
        assert (status, log.splitlines()[-1]) == (130, "onward: interrupted")
        assert "Traceback" not in log


def test_ctrl_c_ends_the_service(tmp_path: Path) -> None:
    """All processes of the service receive the signal, as from a terminal."""
    process = started(
        "serve", stdout=subprocess.PIPE, start_new_session=True,
        settings={"ONWARD_BIND": "127.0.0.1:0", "ONWARD_WORKERS": "2", "ONWARD_STORE": f"lmdb://{tmp_path}/store"},
    )  # fmt: skip
    assert process.stdout is not None
    assert any("http://" in line for line in process.stdout)
    os.killpg(process.pid, signal.SIGINT)
    status, log = ended(process)
    assert status == 130
    assert "Traceback" not in log


@pytest.mark.parametrize("is_idle", [True, False])
def test_ctrl_c_ends_a_stream_that_waits_for_a_terminal(server: Server, *, is_idle: bool) -> None:
    """The command reads stdin, a terminal, from which Ctrl-C comes; before the first step and behind it."""
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "r+b", buffering=0)) as terminal:
        process = started(
            "stream", "--model", "pulse", "-", url=server.url, stdin=theirs, stdout=subprocess.PIPE,
            preexec_fn=lambda: _take_terminal(theirs),
        )  # fmt: skip
        os.close(theirs)
        assert process.stdout is not None
        if is_idle:
            _wait_until_it_reads(process.pid, "n_tty_read", "wait_woken")
        else:
            terminal.write(b"515.0\n")
            assert process.stdout.readline().startswith("1\t")
        terminal.write(b"\x03")
        assert ended(process) == INTERRUPTED


def test_a_stream_that_waits_for_input_ends_with_its_service(tmp_path: Path) -> None:
    """The thread that reads stdin is not in the way of the exit status of another error."""
    with Server(tmp_path) as service:
        process = started(
            "stream", "--model", "pulse", "-", url=service.url, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("515.0\n")
        process.stdin.flush()
        assert process.stdout.readline().startswith("1\t")
        process.stdin.write('"no number"\n')
        process.stdin.flush()
        error = process.stderr.read() if process.stderr else ""
        assert process.wait() == 1
        assert error.startswith("onward: ")
        assert error.count("\n") == 1


def test_ctrl_c_at_a_prompt_is_an_interrupt(server: Server) -> None:
    ours, theirs = pty.openpty()
    with closing(os.fdopen(ours, "r+b", buffering=0)) as terminal:
        process = started(
            "sessions", "--delete", "--prefix", "none", url=server.url, stdin=theirs, stdout=subprocess.PIPE,
            preexec_fn=lambda: _take_terminal(theirs),
        )  # fmt: skip
        os.close(theirs)
        assert process.stderr is not None
        prompt = process.stderr.read(len("End these sessions?"))
        _wait_until_it_reads(process.pid, "n_tty_read", "wait_woken")
        terminal.write(b"\x03")
        rest = process.stderr.read()
        assert prompt == "End these sessions?"
        assert rest.endswith("onward: interrupted\n")
        assert process.wait() == 130
        assert "Traceback" not in rest


@pytest.mark.parametrize("output", ["full", "unread"])
def test_a_service_serves_without_a_reader_of_its_output(
    tmp_path: Path, output: str, request: pytest.FixtureRequest
) -> None:
    """The start banner is lost, and a line of the log reports it."""
    process = started(
        "serve", stdout=request.getfixturevalue(output),
        settings={"ONWARD_BIND": f"unix:{tmp_path}/socket", "ONWARD_WORKERS": "1",
                   "ONWARD_STORE": f"lmdb://{tmp_path}/store"},
    )  # fmt: skip
    assert process.stderr is not None
    assert any("the start banner cannot be written" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 0


def _take_terminal(terminal: int) -> None:
    os.setsid()
    os.close(os.open(os.ttyname(terminal), os.O_RDWR))  # the first terminal that a session opens controls it


def _wait_until_it_reads(pid: int, *functions: str) -> None:
    """Returns once a thread of the process waits in one of these functions of the kernel."""
    while not any(
        function in (task / "wchan").read_text()
        for task in Path(f"/proc/{pid}/task").iterdir()
        for function in functions
    ):
        select.select([], [], [], 0.01)
