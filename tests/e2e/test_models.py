"""What is served, and what is refused."""

import shutil
from pathlib import Path

from tests.e2e.server import Server
from tests.problems import assert_problem
from tests.reference import ZOO, weather


def test_a_damaged_bundle_is_refused_and_the_others_serve(tmp_path: Path) -> None:
    """One flipped byte in a graph: its file and the reason are told, in the log and over HTTP; weather serves."""
    shutil.copytree(ZOO, tmp_path / "models")
    graph = tmp_path / "models/pulse/1/model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with Server(tmp_path, ONWARD_MODELS=str(tmp_path / "models")) as server, server.client() as client:
        models = client.get("/v1/models").json()
        assert [model["name"] for model in models["models"]] == ["weather"]
        (refused,) = models["refused"]
        assert refused["file"] == "pulse/1/model.onnx"
        assert "checksum" in refused["reason"]
        assert any("REFUSED" in line and str(graph) in line for line in server.log)
        assert_problem(client.post("/v1/models/pulse/sessions"), "unknown-model", "model")
        body = {"session_id": "w", "inputs": weather(3)}
        assert client.post("/v1/models/weather/sessions", json=body).json()["step"] == 3
        assert client.get("/readyz").json() == {"status": "ready", "models": {"weather": [1]}}


def test_with_no_sound_bundle_it_is_alive_but_not_ready(tmp_path: Path) -> None:
    """The process answers and says why nothing is served."""
    shutil.copytree(ZOO / "pulse", tmp_path / "models/pulse")
    (tmp_path / "models/pulse/1/manifest.json").write_text("{}")
    with Server(tmp_path, ONWARD_MODELS=str(tmp_path / "models")) as server, server.client() as client:
        assert client.get("/healthz").status_code == 200
        assert "name: Field required" in assert_problem(client.get("/readyz"), "not-ready")["detail"]


def test_the_highest_version_serves_new_sessions(tmp_path: Path) -> None:
    """Versions are numbers, not text: 10 is above 9; an older one can be asked for, and a session stays on its own."""
    for version in (1, 9, 10):
        folder = tmp_path / f"models/pulse/{version}"
        shutil.copytree(ZOO / "pulse/1", folder)
        manifest = folder / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"version": 1,', f'"version": {version},', 1))
    with Server(tmp_path, ONWARD_MODELS=str(tmp_path / "models")) as server, server.client() as client:
        assert client.get("/v1/models").json()["models"][0]["versions"] == [1, 9, 10]
        assert client.post("/v1/models/pulse/sessions").json()["version"] == 10
        old = client.post("/v1/models/pulse/sessions", json={"version": 9}).json()
        assert old["version"] == 9
        client.post(f"/v1/sessions/{old['session_id']}/steps", json={"inputs": [[500]]})
        assert client.get(f"/v1/sessions/{old['session_id']}").json()["version"] == 9


def test_pages_of_sessions(tmp_path: Path) -> None:
    """Every living session once, in the order of ids, whichever process lists them; and the count beside the model."""
    names = [f"s{number:02}" for number in range(25)]
    with Server(tmp_path) as server, server.client() as client:
        for name in names:
            client.post("/v1/models/pulse/sessions", json={"session_id": name})
        client.post("/v1/models/weather/sessions", json={"session_id": "s05x"})
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            page = client.get("/v1/sessions", params={"model": "pulse", "limit": 10, "after": after}).json()
            seen += [one["session_id"] for one in page["sessions"]]
            after = page["after"]
        assert seen == names
        client.delete("/v1/sessions/s00")
        live = {model["name"]: model["live_sessions"] for model in client.get("/v1/models").json()["models"]}
        assert live == {"pulse": 24, "weather": 1}


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    """An unknown setting, a missing repository, an open port: one line, and a status of 1."""
    for settings, said in (
        ({"ONWARD_PROT": "8000"}, "ONWARD_PROT: no such setting"),
        ({"ONWARD_MODELS": str(tmp_path / "nowhere")}, "nowhere: no such folder of models"),
        ({"ONWARD_MODELS": str(tmp_path)}, "no bundle <name>/<version>/ is in it"),
        ({"ONWARD_BIND": "0.0.0.0:0"}, "ONWARD_ALLOW_ANYONE=1"),
    ):
        printed = Server(tmp_path, **settings).refusal()
        assert printed.startswith("onward: ")
        assert said in printed
        assert printed.count("\n") == 1


def test_a_store_that_cannot_open_ends_the_start(tmp_path: Path) -> None:
    """Workers are not started for ever: the service says what is wrong with the store, and exits."""
    (tmp_path / "file").write_text("")
    server = Server(tmp_path, ONWARD_STORE=f"lmdb://{tmp_path}/file/store", ONWARD_WORKERS="1")  # two fail twice
    assert server.fails() != 0
    log = "".join(server.log)
    assert "cannot start" in log
    assert "file/store" in log
    assert "Traceback" not in log
