"""A server whose every answer has two megabytes, each in its own memory."""

import asyncio

from kubeloop.serving.process import Server, log_to_stderr, run


class Generous:
    draining = False

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            while (await receive())["type"] != "lifespan.shutdown":
                await send({"type": "lifespan.startup.complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        while (await receive()).get("more_body"):
            pass
        if scope["path"] == "/slow":
            await asyncio.sleep(5)
        body = b"ok" if scope["path"] in ("/healthz", "/slow") else bytes([120]) * 2**21
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})


log_to_stderr()
run(Server(Generous(), "127.0.0.1", 0, timeout_s=5, drain_s=0.05))
