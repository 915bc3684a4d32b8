"""The peers of the web page: servers that answer the same bytes to every request and do nothing else.

python -m benchmarks.bare_web starlette|uvicorn BYTES
"""

from __future__ import annotations

import socket
import sys
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def main(kind: str, size: int) -> None:
    body = b"x" * size

    async def answer(request: Request) -> Response:
        await request.body()
        return Response(body, media_type="application/json")

    async def bare(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", b"%d" % size), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    app: Any = bare if kind == "uvicorn" else Starlette(routes=[Route("/{path:path}", answer, methods=["POST"])])
    # with its protocol, else asyncio leaves Nagle's algorithm on
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, http="httptools", lifespan="off", log_config=None, access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
