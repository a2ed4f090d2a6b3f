"""The service serves sound bundles, refuses damaged ones, and reports why it cannot start."""

import json
import shutil
import socket
from pathlib import Path

import numpy as np

from onward.model.manifest import Feature
from tests.e2e.server import Server
from tests.helpers.problem_assertions import assert_problem
from tests.helpers.recorded_bundles import make_feature_bundle
from tests.helpers.reference_loop import ZOO, BareLoop, weather


def test_a_damaged_bundle_is_refused_and_the_others_serve(tmp_path: Path) -> None:
    """A flipped byte in a graph is reported with file and reason, in the log and over HTTP; other models are served."""
    shutil.copytree(ZOO, tmp_path / "models")
    graph = tmp_path / "models/pulse/1/model.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with Server(tmp_path, ONWARD_MODELS=str(tmp_path / "models")) as server, server.client() as client:
        models = client.get("/v1/models").json()
        assert [model["name"] for model in models["models"]] == ["characters", "weather"]
        (refused,) = models["refused"]
        assert refused["file"] == "pulse/1/model.onnx"
        assert "checksum" in refused["reason"]
        assert_problem(client.post("/v1/models/pulse/sessions"), "unknown-model", "model")
        body = {"session_id": "w", "inputs": weather(3)}
        assert client.post("/v1/models/weather/sessions", json=body).json()["step"] == 3
        ready = client.get("/readyz").json()
        assert (ready["status"], ready["models"]) == ("ready", {"characters": [1], "weather": [1]})
        assert ready["refused"] == models["refused"]
        server.stop()
        assert any("REFUSED" in line and str(graph) in line for line in server.log)


def test_with_no_sound_bundle_it_is_alive_but_not_ready(tmp_path: Path) -> None:
    """The process answers health checks and reports why it serves nothing."""
    shutil.copytree(ZOO / "pulse", tmp_path / "models/pulse")
    (tmp_path / "models/pulse/1/manifest.json").write_text("{}")
    with Server(tmp_path, ONWARD_MODELS=str(tmp_path / "models")) as server, server.client() as client:
        assert client.get("/healthz").status_code == 200
        assert "name: Field required" in assert_problem(client.get("/readyz"), "not-ready")["detail"]


def test_the_highest_version_serves_new_sessions(tmp_path: Path) -> None:
    """Versions compare as numbers; a request can name an older version, and a session stays on its version."""
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


def test_pages_list_every_session_once(tmp_path: Path) -> None:
    """Pages list every live session once, ordered by id, in any process; models report their count of sessions."""
    names = [f"s{number:02}" for number in range(25)]
    with Server(tmp_path) as server, server.client() as client:
        for name in names:
            client.post("/v1/models/pulse/sessions", json={"session_id": name})
        client.post("/v1/models/weather/sessions", json={"session_id": "s05x"})
        seen: list[str] = []
        after: str | None = ""
        while after is not None:
            page = client.get("/v1/sessions", params={"model": "pulse", "limit": 10, "after": after}).json()
            seen += [session["session_id"] for session in page["sessions"]]
            after = page["after"]
        assert seen == names
        client.delete("/v1/sessions/s00")
        live = {model["name"]: model["live_sessions"] for model in client.get("/v1/models").json()["models"]}
        assert live == {"characters": 0, "pulse": 24, "weather": 1}


def test_a_service_that_cannot_start_says_why(tmp_path: Path) -> None:
    """A wrong setting, a missing repository or a port in use ends the start with one line and status 1."""
    taken = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{taken.getsockname()[1]}"
    for settings, reason in (
        ({"ONWARD_BIND": address}, f"{address} is in use by another process"),
        ({"ONWARD_BIND": "203.0.113.1:80", "ONWARD_ALLOW_ANYONE": "1"}, "203.0.113.1:80: cannot listen there: "),
        ({"ONWARD_PROT": "8000"}, "ONWARD_PROT: no such setting"),
        ({"ONWARD_MODELS": str(tmp_path / "nowhere")}, "nowhere: no such folder of models"),
        ({"ONWARD_MODELS": str(tmp_path)}, "contains no bundle <name>/<version>/"),
        ({"ONWARD_BIND": "0.0.0.0:0"}, "ONWARD_ALLOW_ANYONE=1"),
    ):
        printed = Server(tmp_path, **settings).refusal()
        assert printed.startswith("onward: ")
        assert reason in printed
        assert printed.count("\n") == 1
    taken.close()


def test_a_store_that_cannot_open_ends_the_start(tmp_path: Path) -> None:
    """The service reports what is wrong with the store and exits, and does not start workers for ever."""
    (tmp_path / "file").write_text("")
    server = Server(tmp_path, ONWARD_STORE=f"lmdb://{tmp_path}/file/store")
    assert server.start_and_fail() == 1
    log = "".join(server.log)
    assert "the session store cannot be opened" in log
    assert "file/store" in log
    assert "Traceback" not in log


def test_texts_are_read_and_categories_are_named(tmp_path: Path) -> None:
    """Predictions equal a bare loop's bit for bit for a text, its characters and its indices; so do forecasts."""
    text, bundle = 'The "assert" statement\n', ZOO / "characters/1"
    names = [*json.loads((bundle / "manifest.json").read_text())["features"][0]["categories"], None]
    indices = [names.index(character) for character in text]
    bare_loop = BareLoop(bundle)
    expected = bare_loop.run([[index] for index in indices])
    with Server(tmp_path) as server, server.client() as client:
        model = client.get("/v1/models/characters").json()
        assert (model["task"], model["inputs"][0]["text"]) == ("tokens", "characters")
        assert model["inputs"][0]["categories"] == names[:-1]
        for name, inputs in {"t": text, "c": list(text), "p": indices, "r": [[index] for index in indices]}.items():
            client.post("/v1/models/characters/sessions", json={"session_id": name})
            answer = client.post(f"/v1/sessions/{name}/steps", json={"inputs": inputs}).json()
            predictions = answer["predictions"]
            assert predictions["top"] == [[names[index] for index in row] for row in expected["top"].tolist()]
            assert np.array_equal(np.array(predictions["log_probability"], np.float32), expected["log_probability"])
            assert np.array_equal(np.array(answer["surprise"], np.float32), expected["surprise"])
        greedy, likeliest = [], int(expected["top"][-1, 0])
        for _ in range(8):
            greedy.append([names[likeliest]])
            likeliest = int(bare_loop.step([likeliest])["top"][0])
        rolled = client.post("/v1/sessions/t/forecast", json={"horizon": 8}).json()
        assert rolled == {"step": len(text), "forecast": {"top": greedy}}
        seeded = client.post("/v1/models/characters/sessions", json={"inputs": text}).json()
        assert seeded["prediction"]["top"] == predictions["top"][-1]
        both = client.post("/v1/models/characters/predict", json={"inputs": [text, text[:3]], "horizon": 2}).json()
        assert [sequence["predictions"]["top"] for sequence in both["sequences"]] == [
            predictions["top"],
            predictions["top"][:3],
        ]
        assert both["sequences"][0]["forecast"]["top"] == greedy[:2]
        for wrong, says in ((None, "null"), (1.5, "1.5"), (-1, "-1"), (len(names), str(len(names)))):
            refused = client.post("/v1/sessions/t/steps", json={"inputs": ["a", wrong]})
            assert says in assert_problem(refused, "invalid-request", "inputs[1][0]")["detail"]
        assert client.get("/v1/sessions/t").json()["step"] == len(text)


def test_missing_values_and_labels_over_http(tmp_path: Path) -> None:
    """Null is accepted only for nullable features; classes have names; predictions equal a bare loop's bit for bit."""
    features = (Feature(name="x", nullable=True), Feature(name="kind", kind="category", categories=(3, 5, 8)))
    make_feature_bundle(
        tmp_path / "models", features, "who", classes=("ann", "bob"), head="label", scaling="causal", units=8
    )
    rows: list[list[float | None]] = [[1.5, 3], [None, 8], [2.0, 5], [None, 3]]
    expected = BareLoop(tmp_path / "models/tiny/1").run(
        [[np.nan if x is None else x, (3, 5, 8).index(int(kind or 0))] for x, kind in rows]
    )
    with Server(tmp_path, ONWARD_MODELS=str(tmp_path / "models")) as server, server.client() as client:
        session = client.post("/v1/models/tiny/sessions", json={"inputs": rows[:1]}).json()["session_id"]
        url = f"/v1/sessions/{session}/steps"
        named = [{"kind": kind, "x": x} for x, kind in rows[1:]]
        answer = client.post(url, json={"inputs": named}).json()
        assert answer["predictions"]["top"] == [[("ann", "bob")[at] for at in row] for row in expected["top"][1:]]
        assert np.array_equal(np.array(answer["surprise"], np.float32), expected["surprise"][1:])
        for row, field in (([1.0, None], "inputs[0][1]"), ([1.0, 4], "inputs[0][1]"), (["1", 3], "inputs[0][0]")):
            assert_problem(client.post(url, json={"inputs": [row]}), "invalid-request", field)
        assert_problem(client.post(f"/v1/sessions/{session}/forecast", json={"horizon": 1}), "no-forecast")
        assert_problem(client.post(url, json={"inputs": "text"}), "invalid-request", "inputs")
        assert client.get(f"/v1/sessions/{session}").json()["step"] == len(rows)
