"""An HTTP client whose answers are freed as soon as nobody holds them."""

from __future__ import annotations

from typing import Any

import httpx

__all__ = ["LeanClient"]


class LeanClient(httpx.Client):
    """`httpx.Client`, but for large bodies: no request and no answer waits for the garbage collector.

    An answer of httpx holds a stream that holds the answer, so that both bodies stay in memory until a collection,
    which comes after so many objects and not after so many bytes: of a model in parts, dozens are held at a time.
    """

    def send(self, request: httpx.Request, *, stream: bool = False, **options: Any) -> httpx.Response:
        """See `httpx.Client.send`."""
        response = super().send(request, stream=stream, **options)
        if not stream:  # it was read whole, and its own stream is used up
            response.stream = httpx.ByteStream(b"")
        return response
