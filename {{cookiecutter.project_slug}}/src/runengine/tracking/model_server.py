"""MLflow's server of one model, which refuses requests that are too large. `registry.serve` starts it by its path.

It is a process of its own that imports nothing of the project: a model brings the code that it was saved with.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


class LimitedBody:
    """Keeps the body of a request up to this size, and answers a larger one by 413 (ASGI 3).

    Args:
        app: gets what is small enough.
        max_mb: 10^6 bytes.
    """

    def __init__(self, app: App, max_mb: int) -> None:
        self.app, self.max_mb = app, max_mb

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body, too_large, more = bytearray(), False, True
        while more:  # to its end, also if it is too large: a client that is still sending reads no answer
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
            body += message.get("body", b"")
            if too_large := too_large or len(body) > self.max_mb * 1_000_000:
                body.clear()
        if too_large:
            await self._refuse(send)
            return
        read: list[Message] = [{"type": "http.request", "body": bytes(body)}]

        async def replay() -> Message:
            return read.pop() if read else await receive()

        await self.app(scope, replay, send)

    async def _refuse(self, send: Send) -> None:
        sentence = (
            f"the request is larger than {self.max_mb} MB. Send fewer examples at once, or start the server with "
            f"another limit: --max-mb {2 * self.max_mb}\n"
        )
        headers = [(b"content-type", b"text/plain; charset=utf-8")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": sentence.encode()})


def main(model: str, host: str, port: str, max_mb: str) -> None:
    import uvicorn
    from mlflow.pyfunc import load_model, scoring_server

    app = scoring_server.init(load_model(model))
    app.add_middleware(LimitedBody, max_mb=int(max_mb))
    uvicorn.run(app, host=host, port=int(port))


if __name__ == "__main__":
    main(*sys.argv[1:])
