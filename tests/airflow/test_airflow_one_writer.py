"""Requests that write to SQLite: one after the other, so that none waits for what needs the event loop it holds up."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from evpack.airflow.one_writer import OneWriter, Receive, Scope, Send
from evpack_plugin import EvpackPlugin

pytestmark = pytest.mark.airflow

PATIENCE_S = 0.2
"""How long the pretended database lets a writer wait; only waited out where two of them meet."""


class Database:
    """One writer at a time, as SQLite: the others block their thread until they give up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.refused = 0

    async def app(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request that needs the loop before it commits (/task), one that writes in the loop (/audit), a reader."""
        if scope["path"] == "/read":
            return
        waits = asyncio.to_thread(self._lock.acquire) if scope["path"] == "/task" else None
        got = await waits if waits is not None else self._lock.acquire(timeout=PATIENCE_S)
        if not got:
            self.refused += 1
            return
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self._lock.release()


def request(path: str, method: str, kind: str = "http") -> Any:
    return {"type": kind, "method": method, "path": path}


async def nothing(*_: Any) -> Any:
    return None


def play(app: Any, *requests: Any) -> None:
    async def together() -> None:
        await asyncio.wait_for(asyncio.gather(*(app(scope, nothing, nothing) for scope in requests)), 60)

    asyncio.run(together())


def test_the_audit_log_never_waits_for_a_task_that_waits_for_it() -> None:
    both = [request("/task", "PATCH"), request("/audit", "POST")] * 3
    database = Database()
    play(OneWriter(database.app), *both)
    assert database.refused == 0


def test_without_it_they_meet() -> None:
    database = Database()
    play(database.app, request("/task", "PATCH"), request("/audit", "POST"), request("/audit", "POST"))
    assert database.refused > 0


def test_readers_and_other_connections_wait_for_nobody() -> None:
    async def held_up() -> None:
        gate, entered = asyncio.Event(), asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope.get("path") == "/slow":
                entered.set()
                await gate.wait()

        through = OneWriter(app)
        slow = asyncio.create_task(through(request("/slow", "POST"), nothing, nothing))
        await entered.wait()
        for scope in (request("/read", "GET"), request("/read", "HEAD"), {"type": "lifespan"}):
            await through(scope, nothing, nothing)
        waiting = asyncio.create_task(through(request("/write", "PUT"), nothing, nothing))
        await asyncio.sleep(0)
        assert not waiting.done()
        gate.set()
        await asyncio.gather(slow, waiting)

    asyncio.run(asyncio.wait_for(held_up(), 60))


def test_a_request_that_fails_holds_up_nobody() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        raise ValueError(scope["path"])

    through = OneWriter(app)
    for path in ("/one", "/other"):
        with pytest.raises(ValueError, match=path):
            play(through, request(path, "POST"))


def test_a_database_server_needs_none_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql+psycopg2://airflow@localhost/airflow")
    database = Database()
    play(OneWriter(database.app), request("/task", "PATCH"), request("/audit", "POST"), request("/audit", "POST"))
    assert database.refused > 0


def test_airflow_is_given_it() -> None:
    assert [each["middleware"].__name__ for each in EvpackPlugin.fastapi_root_middlewares] == ["OneWriter"]
