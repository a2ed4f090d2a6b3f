"""The FastAPI server: what a user would otherwise write to serve a recurrent model. Not durable.

NETWORK=<file>.onnx uvicorn bench.peer:app --loop uvloop --http httptools --no-access-log

A dict of states, one row a call, and the bare network of `bench.network`. The endpoint reads the body itself and parses
and encodes with orjson, which was the fastest of the usual forms: a pydantic model of the body made it slower, and so
did FastAPI's own encoding of the answer.
"""

import os

import numpy as np
import onnxruntime as ort
import orjson
from fastapi import FastAPI, HTTPException, Request, Response
from numpy.typing import NDArray

State = NDArray[np.float32]

options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
model = ort.InferenceSession(os.environ["NETWORK"], options, providers=["CPUExecutionProvider"])
initial = np.zeros(model.get_inputs()[1].shape, np.float32)  # (layers, 1, units)
states: dict[str, tuple[State, State]] = {}
app = FastAPI()


@app.post("/sessions/{name}")
async def create(name: str) -> dict[str, str]:
    states[name] = initial, initial
    return {"session": name}


@app.post("/sessions/{name}/steps")
async def step(name: str, request: Request) -> Response:
    if name not in states:
        raise HTTPException(404)
    inputs = np.array(orjson.loads(await request.body())["inputs"], np.float32)[:, np.newaxis]  # (time, 1, features)
    h, c = states[name]
    mean, std, *after = model.run(["mean", "std", "h_out", "c_out"], {"inputs": inputs, "h": h, "c": c})
    states[name] = after[0], after[1]
    answer = {"mean": mean[:, 0].tolist(), "std": std[:, 0].tolist()}
    return Response(orjson.dumps(answer), media_type="application/json")
