"""Asks a running service the README's three requests, and goes on with the session after whatever befell the service.

check.py URL FILE begin     makes the session `demo` and steps it; FILE keeps what was sent and answered
check.py URL FILE resume    the session is where FILE says, a retry moves nothing, and it goes on from there
check.py URL FILE compare   a session that nothing befell, fed the same inputs in one call, gets the same answers

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
        kept = begin(url)
    else:
        kept = {"resume": resume, "compare": compare}[part](url, json.loads(file.read_text()))
    file.write_text(json.dumps(kept))
    sys.stdout.write(f"{kept['said']}\n")


def begin(url: str) -> dict[str, Any]:
    created = call(url, "/v1/models/pulse/sessions", {"session_id": "demo"}, status=201)
    expect("session_id and step", (created["session_id"], created["step"]), ("demo", 0))
    kept = {"inputs": [], "steps": 0, "predictions": {}, "surprise": []}
    return stepped(url, kept, FIRST)


def resume(url: str, kept: dict[str, Any]) -> dict[str, Any]:
    expect("the session's step", call(url, "/v1/sessions/demo")["step"], len(kept["inputs"]))
    expect("the forecast", forecast(url, "demo"), kept["forecast"])
    expect("the answer to a retry", call(url, "/v1/sessions/demo/steps", kept["request"]), kept["answer"])
    return stepped(url, kept, LATER[kept["steps"] - 1])


def compare(url: str, kept: dict[str, Any]) -> dict[str, Any]:
    call(url, "/v1/models/pulse/sessions", {"session_id": "whole"}, status=201)
    answer = call(url, "/v1/sessions/whole/steps", {"inputs": kept["inputs"]})
    expect("the step", answer["step"], len(kept["inputs"]))
    expect("the predictions", answer["predictions"], kept["predictions"])
    expect("the surprise", answer["surprise"], kept["surprise"])
    expect("the forecast", forecast(url, "whole"), kept["forecast"])
    said = f"{answer['step']} inputs in one call: the same predictions, surprise and forecast, to the last bit"
    return kept | {"said": said}


def stepped(url: str, kept: dict[str, Any], inputs: list[list[int]]) -> dict[str, Any]:
    """What is kept after `inputs` more: the session moved by so many, and a forecast does not move it."""
    before, after = len(kept["inputs"]), len(kept["inputs"]) + len(inputs)
    request = {"inputs": inputs, "step": before, "request_id": f"part-{kept['steps']}"}
    answer = call(url, "/v1/sessions/demo/steps", request)
    expect("the step", answer["step"], after)
    for name, rows in answer["predictions"].items():
        expect(f"rows of {name}", len(rows), len(inputs))
        finite(name, [number for row in rows for number in row])
    finite("surprise", answer["surprise"])
    rolled = forecast(url, "demo")
    expect("the step after a forecast", call(url, "/v1/sessions/demo")["step"], after)
    return {
        "inputs": kept["inputs"] + inputs,
        "steps": kept["steps"] + 1,
        "predictions": {name: kept["predictions"].get(name, []) + rows for name, rows in answer["predictions"].items()},
        "surprise": kept["surprise"] + answer["surprise"],
        "forecast": rolled,
        "request": request,
        "answer": answer,
        "said": f"step {before} -> {after}, next {answer['predictions']['mean'][-1][0]:.6g}",
    }


def forecast(url: str, session: str) -> list[list[float]]:
    answer = call(url, f"/v1/sessions/{session}/forecast", {"horizon": HORIZON})
    rows: list[list[float]] = answer["forecast"]["mean"]
    expect("rows of the forecast", len(rows), HORIZON)
    finite("forecast", [number for row in rows for number in row])
    return rows


def call(url: str, path: str, body: object = None, status: int = 200) -> dict[str, Any]:
    """The answer to a POST of `body`, or to a GET where there is none."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"} if data else {})
    try:
        with _direct.open(request, timeout=10) as response:
            got, text = response.status, response.read()
    except urllib.error.HTTPError as error:
        got, text = error.code, error.read()
    if got != status:
        sys.exit(f"{request.get_method()} {path}: expected {status}, got {got}: {text.decode()}")
    answer: dict[str, Any] = json.loads(text)
    return answer


def finite(what: str, numbers: list[float]) -> None:
    if not numbers or not all(math.isfinite(number) for number in numbers):
        sys.exit(f"{what}: expected numbers, got {numbers}")


def expect(what: str, got: object, expected: object) -> None:
    if got != expected:
        sys.exit(f"{what}: expected {expected}, got {got}")


if __name__ == "__main__":
    main()
