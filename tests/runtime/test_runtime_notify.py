"""Operators are told: in a file, by a command, and never at the cost of what tells them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from evpack.errors import BadInput
from evpack.home import Home
from evpack.runtime.leases import quarantine
from evpack.runtime.notify import NOTIFY_ENV, notify
from evpack.runtime.pools import made_pools, pool_drift
from tests.waiting import DEADLINE_S


def told(home: Home) -> list[dict[str, str]]:
    return [json.loads(line) for line in home.notifications.read_text().splitlines()]


def test_events_are_kept_one_line_each(home: Home) -> None:
    notify(home, "a", "one\nwith a line break")
    notify(home, "b", "two")
    assert [(entry["event"], entry["text"]) for entry in told(home)] == [("a", "one\nwith a line break"), ("b", "two")]


def test_a_command_gets_event_and_text_as_arguments(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = tmp_path / "tell"
    command.write_text(f'#!/bin/sh\nprintf "%s|%s" "$1" "$2" > {tmp_path}/heard\n')
    command.chmod(0o755)
    monkeypatch.setenv(NOTIFY_ENV, str(command))
    monkeypatch.setattr("evpack.runtime.notify.TIMEOUT_S", DEADLINE_S)
    notify(home, "campaign_ended", "PASS; $(touch /nowhere)")
    assert (tmp_path / "heard").read_text() == "campaign_ended|PASS; $(touch /nowhere)"


@pytest.mark.parametrize("command", ["/no/such/command", "/bin/false"])
def test_a_command_that_fails_changes_nothing(command: str, home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NOTIFY_ENV, command)
    notify(home, "a", "one")
    assert len(told(home)) == 1


def test_no_text_is_too_odd_to_be_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVPACK_NOTIFY", "/bin/true")
    for text in ("a\0b", "\ud800", "x" * 10**7):
        notify(home, "event", text)
    assert len(home.notifications.read_text().splitlines()) == 3


def test_a_quarantine_is_told(home: Home) -> None:
    quarantine(home, "GPU-7", "Xid 79")
    assert [(entry["event"], entry["text"]) for entry in told(home)] == [("device_quarantined", "GPU-7: Xid 79")]


@pytest.mark.parametrize("text", ["", "[]", '{"gpu": "8"}', '{"gpu": -1}', '{"gpu": true}', '{"gpu": 1.5}'])
def test_pools_that_somebody_wrote_are_refused(text: str, home: Home) -> None:
    home.create().pools.write_text(text)
    with pytest.raises(BadInput, match="pools") as caught:
        made_pools(home)
    assert "airflow setup" in caught.value.mend


def test_drift_names_pools_that_are_not_as_they_were_made(home: Home) -> None:
    assert made_pools(home) == {}
    assert pool_drift({}, {"default_pool": 128}) == {}
    made = {"cpu": 2, "gpu": 8}
    assert pool_drift(made, {**made, "default_pool": 128}) == {}
    assert pool_drift(made, {"cpu": 4}) == {
        "cpu": "pool cpu has 4 slots in Airflow, made were 2",
        "gpu": "pool gpu has no slots in Airflow, made were 8",
    }
