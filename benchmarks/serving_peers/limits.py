"""ASGI applications that show the limit of every server: `echo` sends the body back, `model` runs ONNX Runtime.

Neither checks anything. `MODEL` in the environment names the ONNX file.
"""

import os
from typing import Any

import orjson


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Send the body back."""
    if scope["type"] == "http":
        await _answer(await _body(receive), send)


def model() -> Any:
    """Return the application that predicts what a V2 request holds."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(os.environ["MODEL"], options, providers=["CPUExecutionProvider"])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        body = await _body(receive)
        scores = []
        if body:
            row = np.array(orjson.loads(body)["inputs"][0]["data"], np.float32).reshape(1, -1)
            scores = session.run(None, {"input": row})[0].ravel().tolist()
        await _answer(orjson.dumps({"outputs": [{"name": "probabilities", "data": scores}]}), send)

    return app


async def _body(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _answer(body: bytes, send: Any) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
