"""Sends the three requests of the README to a running service, and continues the session after an interruption.

check.py URL FILE begin     makes the session `demo` and steps it; FILE stores the requests and responses
check.py URL FILE resume    the session has the step in FILE, a retry advances nothing, and it continues from there
check.py URL FILE compare   an uninterrupted session, fed the same inputs in one call, has the same predictions

Exits 1 with what is wrong. Needs the standard library only: it runs with whatever Python is there.
"""

import json
import math
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

FIRST = [[515], [514]]
LATER = [[[514], [511], [507]], [[502]], [[498], [494], [491]], [[490], [490]]]
HORIZON = 5

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> None:
    url, file, part = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if part == "begin":
        record = begin(url)
    else:
        record = {"resume": resume, "compare": compare}[part](url, json.loads(file.read_text()))
    file.write_text(json.dumps(record))
    sys.stdout.write(f"{record['summary']}\n")


def begin(url: str) -> dict[str, Any]:
    created = call(url, "/v1/models/pulse/sessions", {"session_id": "demo"}, status=201)
    expect("session_id and step", (created["session_id"], created["step"]), ("demo", 0))
    record = {"inputs": [], "steps": 0, "predictions": {}, "surprise": []}
    return step_and_record(url, record, FIRST)


def resume(url: str, record: dict[str, Any]) -> dict[str, Any]:
    expect("the session's step", call(url, "/v1/sessions/demo")["step"], len(record["inputs"]))
    expect("the forecast", forecast(url, "demo"), record["forecast"])
    expect("the response to a retry", call(url, "/v1/sessions/demo/steps", record["request"]), record["answer"])
    return step_and_record(url, record, LATER[record["steps"] - 1])


def compare(url: str, record: dict[str, Any]) -> dict[str, Any]:
    call(url, "/v1/models/pulse/sessions", {"session_id": "whole"}, status=201)
    response = call(url, "/v1/sessions/whole/steps", {"inputs": record["inputs"]})
    expect("the step", response["step"], len(record["inputs"]))
    expect("the predictions", response["predictions"], record["predictions"])
    expect("the surprise", response["surprise"], record["surprise"])
    expect("the forecast", forecast(url, "whole"), record["forecast"])
    summary = f"{response['step']} inputs in one call: the same predictions, surprise and forecast, to the last bit"
    return record | {"summary": summary}


def step_and_record(url: str, record: dict[str, Any], inputs: list[list[int]]) -> dict[str, Any]:
    """Steps the session by `inputs` and forecasts, which does not advance it; returns the new record."""
    before, after = len(record["inputs"]), len(record["inputs"]) + len(inputs)
    request = {"inputs": inputs, "step": before, "request_id": f"part-{record['steps']}"}
    response = call(url, "/v1/sessions/demo/steps", request)
    expect("the step", response["step"], after)
    for name, rows in response["predictions"].items():
        expect(f"rows of {name}", len(rows), len(inputs))
        finite(name, [number for row in rows for number in row])
    finite("surprise", response["surprise"])
    rolled = forecast(url, "demo")
    expect("the step after a forecast", call(url, "/v1/sessions/demo")["step"], after)
    return {
        "inputs": record["inputs"] + inputs,
        "steps": record["steps"] + 1,
        "predictions": {
            name: record["predictions"].get(name, []) + rows for name, rows in response["predictions"].items()
        },
        "surprise": record["surprise"] + response["surprise"],
        "forecast": rolled,
        "request": request,
        "answer": response,
        "summary": f"step {before} -> {after}, next {response['predictions']['mean'][-1][0]:.6g}",
    }


def forecast(url: str, session: str) -> list[list[float]]:
    response = call(url, f"/v1/sessions/{session}/forecast", {"horizon": HORIZON})
    rows: list[list[float]] = response["forecast"]["mean"]
    expect("rows of the forecast", len(rows), HORIZON)
    finite("forecast", [number for row in rows for number in row])
    return rows


def call(url: str, path: str, body: object = None, status: int = 200) -> dict[str, Any]:
    """Returns the response to a POST of `body`, or to a GET without one."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"} if data else {})
    try:
        with _direct.open(request, timeout=10) as response:
            got, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        got, text = error.code, error.read()
    if got != status:
        sys.exit(f"{request.get_method()} {path}: expected {status}, got {got}: {text.decode()}")
    document: dict[str, Any] = json.loads(text)
    return document


def finite(what: str, numbers: list[float]) -> None:
    if not numbers or not all(math.isfinite(number) for number in numbers):
        sys.exit(f"{what}: expected numbers, got {numbers}")


def expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        sys.exit(f"{what}: expected {expected}, got {got}")


if __name__ == "__main__":
    main()
