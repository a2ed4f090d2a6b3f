"""Steps over a WebSocket are answered in order and as posted steps are, through kills and stops, in many streams."""

import json
import resource
import struct
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.e2e.server import Server
from tests.helpers.reference_loop import INPUTS, ZOO, BareLoop, assert_same_bits, pulse, weather
from tests.helpers.websocket_client import CLOSE, PING, PONG, TEXT, WebSocket, frame

STREAMS, ROUNDS, IDLE = 1000, 3, 3000


def begin(client: httpx.Client, *names: str, model: str = "pulse") -> None:
    for name in names:
        client.delete(f"/v1/sessions/{name}")
        assert client.post(f"/v1/models/{model}/sessions", json={"session_id": name}).status_code == 201


@pytest.mark.parametrize("fast_path", ["1", "0"])
@pytest.mark.parametrize("model", ["pulse", "weather"])
def test_messages_are_answered_as_posts_are(tmp_path: Path, fast_path: str, model: str) -> None:
    """Responses and problems equal those of posted steps, with the fast path and without it."""
    inputs = INPUTS[model](4)
    messages: list[dict[str, Any]] = [
        {"inputs": inputs[:2], "request_id": "r1"},
        {"inputs": inputs[2:3], "step": 2},
        {"inputs": inputs[2:3], "step": 2, "request_id": "again"},
        {"inputs": [["x"]], "request_id": "r2"},
        {"inputs": []},
        {"request_id": "r3"},
        {"inputs": inputs[:1], "request_id": "r1"},
        {"inputs": inputs[3:], "unknown": 1},
        {"inputs": inputs[3:]},
    ]
    with Server(tmp_path, ONWARD_LANE=fast_path, ONWARD_WORKERS="1") as server, server.client() as client:
        begin(client, "posted", "streamed", model=model)
        posted = [client.post("/v1/sessions/posted/steps", json=body).json() for body in messages]
        with WebSocket(server.url, "streamed") as stream:
            for message, expected in zip(messages, posted, strict=True):
                stream.send(message)
                name = {"request_id": message["request_id"]} if "request_id" in message else {}
                text = json.dumps(stream.receive()).replace("'streamed'", "'posted'")
                assert json.loads(text) == expected | name
        assert client.get("/v1/sessions/streamed").json()["step"] == 4


def test_bytes_are_answered_by_bytes(server: Server, client: httpx.Client) -> None:
    """Binary messages carry several float32 steps and can be repeated by their number; a problem is a text."""
    begin(client, "b")
    inputs = pulse(6)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    rows = np.stack([expected[name][:, 0] for name in ("mean", "std")] + [expected["surprise"]], axis=1).astype("<f4")
    with WebSocket(server.url, "b") as stream:
        for start, stop, number in ((0, 1, 0), (1, 4, 7), (1, 4, 7), (4, 6, 2**64 - 1)):
            stream.send(struct.pack("<Q", number) + np.array(inputs[start:stop], "<f4").tobytes())
            answer = stream.receive()
            assert answer[:8] == struct.pack("<Q", stop)
            values = np.frombuffer(answer, "<f4", offset=8).reshape(stop - start, 5)
            assert values[:, :3].tobytes() == rows[start:stop].tobytes()
            assert np.isnan(values[:, 4]).all(), "an anomaly of six inputs"
        for wrong in (b"", b"1234567", struct.pack("<Q", 1), struct.pack("<Qh", 1, 5), struct.pack("<Qf", 1, np.inf)):
            stream.send(wrong)
            assert stream.receive()["status"] in {400, 422}
        assert client.get("/v1/sessions/b").json()["step"] == 6


@pytest.mark.parametrize(
    ("model", "inputs", "begun"),
    [("weather", weather(30), {"interval": 0.9}), ("pulse", pulse(30), {}), ("characters", [[3], [7]] * 15, {})],
)
def test_bytes_contain_the_values_of_texts(
    server: Server, client: httpx.Client, model: str, inputs: Any, begun: dict[str, float]
) -> None:
    """A binary response has outputs, surprise, error, anomaly and both ends of the interval; null is not finite."""
    responses = list[Any]()
    for name in ("text", "bytes"):
        client.post(f"/v1/models/{model}/sessions", json={"session_id": f"{model}-{name}"} | begun).raise_for_status()
        with WebSocket(server.url, f"{model}-{name}") as stream:
            stream.send({"inputs": inputs} if name == "text" else bytes(8) + np.array(inputs, "<f4").tobytes())
            responses.append(stream.receive())
        client.delete(f"/v1/sessions/{model}-{name}").raise_for_status()
    text, data = responses
    about = client.get(f"/v1/models/{model}").json()
    if "top" in text["predictions"]:  # categories are indices in bytes, and names in a text
        indices = {name: index for index, name in enumerate([*about["inputs"][0]["categories"], None])}
        text["predictions"]["top"] = [[indices[name] for name in row] for row in text["predictions"]["top"]]
    columns = [text["predictions"][name] for name in about["head"]["outputs"]]
    columns += [text.get("surprise"), text.get("error"), text.get("anomaly")]
    columns += [text.get("interval", {}).get(end) for end in ("low", "high")]
    expected = np.concatenate(
        [np.array(column, "<f4").reshape(30, -1) for column in columns if column is not None], axis=1
    )
    values = np.frombuffer(data, "<f4", offset=8).reshape(30, -1)
    np.testing.assert_array_equal(np.where(np.isfinite(values), values, np.nan), expected)
    assert np.isfinite(expected[-1]).all()


def test_pipelined_messages_are_answered_in_order(server: Server, client: httpx.Client) -> None:
    """Five hundred messages sent at once are answered in order; an invalid message among them advances nothing."""
    begin(client, "p")
    inputs = pulse(500)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    with WebSocket(server.url, "p") as stream:
        stream.send(*({"inputs": [row], "request_id": f"r{number}"} for number, row in enumerate(inputs[:250])))
        stream.send({"inputs": [[None]], "request_id": "bad"})
        whole = json.dumps({"inputs": [inputs[250]], "request_id": "r250"}).encode()
        pieces = frame(whole[:9], TEXT, fin=False) + frame(b"hello", PING) + frame(whole[9:], 0)
        stream.socket.sendall(pieces)
        stream.send(*({"inputs": [row], "request_id": f"r{number}"} for number, row in enumerate(inputs[251:], 251)))
        received, pongs = list[dict[str, Any]](), 0
        while len(received) < 501:
            opcode, data = stream.frame()
            if opcode == PONG:
                pongs += data == b"hello"
            else:
                received.append(json.loads(data))
    assert pongs == 1
    assert received.pop(250)["status"] == 422
    assert [message["request_id"] for message in received] == [f"r{number}" for number in range(500)]
    assert [message["step"] for message in received] == list(range(1, 501))
    for index, message in enumerate(received):
        assert_same_bits(message, expected, slice(index, index + 1))


def test_an_invalid_handshake_is_refused(server: Server, client: httpx.Client) -> None:
    """The response has a status that tells the reason, and the connection is not upgraded."""
    begin(client, "r", "ended")
    client.delete("/v1/sessions/ended")
    plain = client.get("/v1/sessions/r/stream")
    assert (plain.status_code, plain.json()["type"]) == (426, "urn:onward:problem:upgrade-required")
    for name, headers, status in (
        ("nobody", [], 404),
        ("ended", [], 410),
        ("r", [b"Origin: http://elsewhere.example"], 403),
        ("r", [b"Sec-WebSocket-Version: 12"], 400),
    ):
        with pytest.raises(ConnectionError, match=f"HTTP/1.1 {status}"):
            WebSocket(server.url, name, *headers)
    with WebSocket(server.url, "r", b"Origin: http://localhost") as stream:
        stream.send({"inputs": [[500]]})
        assert stream.receive()["step"] == 1


def test_a_session_that_ends_says_so(server: Server, client: httpx.Client) -> None:
    begin(client, "e")
    with WebSocket(server.url, "e") as stream:
        stream.send({"inputs": [[500]]})
        assert stream.receive()["step"] == 1
        client.delete("/v1/sessions/e")
        stream.send({"inputs": [[500]]})
        assert stream.receive()["type"] == "urn:onward:problem:session-ended"


def test_a_violation_of_the_protocol_closes_with_its_code(tmp_path: Path) -> None:
    """Invalid frames close with 1002, messages beyond ONWARD_MAX_BODY_BYTES with 1009; other streams continue."""
    with Server(tmp_path, ONWARD_MAX_BODY_BYTES="2000") as server, server.client() as client:
        begin(client, "c")
        for wrong, code in ((b"\xff" * 20, 1002), (frame(b"x" * 3000), 1009)):
            with WebSocket(server.url, "c") as stream, WebSocket(server.url, "c") as neighbour:
                stream.socket.sendall(wrong)
                with pytest.raises(ConnectionError, match=str(code)):
                    stream.receive()
                neighbour.send({"inputs": [[500]]})
                assert "predictions" in neighbour.receive()
        with WebSocket(server.url, "c") as stream:
            stream.socket.sendall(frame(struct.pack(">H", 1000), CLOSE))
            assert stream.frame() == (CLOSE, struct.pack(">H", 1000))


def test_unanswered_messages_can_be_sent_again(tmp_path: Path) -> None:
    """Kills of the worker among pipelined messages lose no message and apply none twice."""
    inputs = pulse(400)
    expected = BareLoop(ZOO / "pulse/1").run(inputs)
    answers: list[dict[str, object]] = []
    with Server(tmp_path) as server, server.client() as client:
        begin(client, "k")
        while len(answers) < len(inputs):
            with WebSocket(server.url, "k") as stream:
                worker, kills_at = server.holder(stream.socket), len(answers) + 60
                try:
                    sent = len(answers)
                    while len(answers) < len(inputs):
                        more = [
                            {"inputs": [inputs[at]], "request_id": f"r{at}"}
                            for at in range(sent, min(len(answers) + 32, len(inputs)))
                        ]
                        stream.send(*more)
                        sent += len(more)
                        if len(answers) >= kills_at:
                            server.kill_worker(worker)
                            kills_at = len(inputs)
                        answers.append(stream.receive())
                except (ConnectionError, BrokenPipeError):
                    continue
        assert client.get("/v1/sessions/k").json()["step"] == len(inputs)
    assert [answer["step"] for answer in answers] == list(range(1, len(inputs) + 1))
    for index, answer in enumerate(answers):
        assert_same_bits(answer, expected, slice(index, index + 1))


def test_a_stop_closes_idle_streams(tmp_path: Path) -> None:
    """Idle streams are closed with 1001, so that clients connect to another worker; the stop waits for none of them."""
    with Server(tmp_path) as server, server.client() as client:
        begin(client, "s")
        with WebSocket(server.url, "s") as stream:
            client.close()
            assert server.stop() == 0
            with pytest.raises(ConnectionError, match="1001"):
                stream.receive()


def resident(pid: int) -> int:
    """Returns the bytes of anonymous memory of the process."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(fields["RssAnon"].split()[0])


def test_a_thousand_streams_step_in_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand streams over two workers step without delay by each other or by three thousand idle streams.

    What an idle one costs is printed, and bounded.
    """
    inputs = pulse(STREAMS * ROUNDS)
    files = 2 * (STREAMS + IDLE)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < files:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    with Server(tmp_path) as server, server.client() as client:
        items = []
        for number in range(STREAMS):
            assert client.post("/v1/models/pulse/sessions", json={"session_id": f"s{number}"}).status_code == 201
            items.append({"session_id": f"s{number}", "inputs": [[500]]})
        client.post("/v1/steps", json={"items": items})  # records are remembered already
        before = sum(map(resident, server.workers()))
        idle = [WebSocket(server.url, f"s{number % STREAMS}") for number in range(IDLE)]
        streams = [WebSocket(server.url, f"s{number}") for number in range(STREAMS)]
        cost = (sum(map(resident, server.workers())) - before) / (STREAMS + IDLE)
        assert all(server.holder(stream.socket) in server.workers() for stream in streams[:3])
        for turn in range(ROUNDS):
            for number, stream in enumerate(streams):
                stream.send({"inputs": [inputs[turn * STREAMS + number]]})
            for stream in streams:
                assert stream.receive()["step"] == turn + 2
        for number in (0, STREAMS - 1):
            mine = [[500.0], *(inputs[turn * STREAMS + number] for turn in range(ROUNDS))]
            expected = BareLoop(ZOO / "pulse/1").run(mine)
            streams[number].send({"inputs": [[501]]})
            after = BareLoop(ZOO / "pulse/1").run([*mine, [501.0]])
            assert_same_bits(streams[number].receive(), after, slice(len(mine), None))
            assert len(expected["mean"]) == ROUNDS + 1
        for number, stream in enumerate(idle):
            stream.send({"inputs": [[502]], "step": 0})
            assert stream.receive()["expected_step"] >= ROUNDS + 1, f"stream {number} is not served any more"
        for stream in streams + idle:
            stream.close()
    with capsys.disabled():
        print(f"\nan idle stream: {cost / 1024:.1f} KiB of its worker's memory")  # noqa: T201
    assert cost < 64 * 1024
