"""An ASGI application that reads the request and answers a constant: what HTTP in Python costs by itself.

uvicorn --app-dir bench constant_app:answer --loop uvloop --http httptools --no-access-log
"""

from collections.abc import Awaitable, Callable
from typing import Any

BODY = b"[14.165271759033203]"
HEADERS = [(b"content-type", b"application/json"), (b"content-length", str(len(BODY)).encode())]


async def answer(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    more = True
    while more:
        more = (await receive()).get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
    await send({"type": "http.response.body", "body": BODY})
