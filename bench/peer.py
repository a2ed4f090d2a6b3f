"""The FastAPI server: what a user would otherwise write to serve a recurrent model. Not durable.

NETWORK=<file>.onnx uvicorn bench.peer:app --loop uvloop --http httptools --no-access-log

A dict of states, one row a call, and the bare network of `bench.network`. The endpoint is what FastAPI's tutorial
teaches: a pydantic model of the body, and a dict as the answer. An endpoint that reads and writes the body itself with
orjson is faster.
"""

import os

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, HTTPException
from numpy.typing import NDArray
from pydantic import BaseModel

State = NDArray[np.float32]

options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.add_session_config_entry("session.intra_op.allow_spinning", "0")
model = ort.InferenceSession(os.environ["NETWORK"], options, providers=["CPUExecutionProvider"])
initial = np.zeros(model.get_inputs()[1].shape, np.float32)  # (layers, 1, units)
states: dict[str, tuple[State, State]] = {}
app = FastAPI()


class Body(BaseModel):
    inputs: list[list[float]]


@app.post("/sessions/{name}")
async def create(name: str) -> dict[str, str]:
    states[name] = initial, initial
    return {"session": name}


@app.post("/sessions/{name}/steps")
async def step(name: str, body: Body) -> dict[str, list[list[float]]]:
    if name not in states:
        raise HTTPException(404)
    inputs = np.array(body.inputs, np.float32)[:, np.newaxis]  # (time, 1, features)
    h, c = states[name]
    mean, std, *after = model.run(["mean", "std", "h_out", "c_out"], {"inputs": inputs, "h": h, "c": c})
    states[name] = after[0], after[1]
    return {"mean": mean[:, 0].tolist(), "std": std[:, 0].tolist()}
