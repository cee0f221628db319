"""Requests that write wait for each other where Airflow's database is SQLite, which has one writer at a time.

Without it Airflow's API server locks itself out: the entry of the audit log is written in the server's event loop,
which then stands still until another request has committed, and that one needs the loop for it. Both waited until
SQLite gave up (`config.LOCK_WAIT_S`), the request failed, and so did tasks that wanted to start meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

READING = frozenset({"GET", "HEAD", "OPTIONS"})


class OneWriter:
    """ASGI middleware: one request that may write at a time, from its first byte to its last; others run freely."""

    def __init__(self, app: App) -> None:
        from airflow.configuration import conf

        self._app = app
        self._needed = conf.get("database", "sql_alchemy_conn").startswith("sqlite")
        self._writing = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if not self._needed or scope["type"] != "http" or scope["method"] in READING:
            await self._app(scope, receive, send)
            return
        async with self._writing:
            await self._app(scope, receive, send)
