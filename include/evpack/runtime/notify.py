"""What an operator should know without looking: into the log, into EVPACK_HOME/notifications.jsonl, to a command."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path

from evpack.files import utc_now
from evpack.home import Home

NOTIFY_ENV = "EVPACK_NOTIFY"
"""Path of an executable that is called with two arguments, the event and its text (mail, chat, pager)."""

TIMEOUT_S = 10.0
"""How long it may take; what it says or how it ends changes nothing here."""

log = logging.getLogger(__name__)


def notify(home: Home, event: str, text: str) -> None:
    """Tell about an event (``device_quarantined``, ``pool_drift``, ``campaign_ended``). Never raises."""
    log.warning("%s: %s", event, text)
    line = json.dumps({"at": utc_now(), "event": event, "text": text}) + "\n"
    try:
        home.root.mkdir(parents=True, exist_ok=True)
        with home.notifications.open("a", encoding="utf-8") as file:
            file.write(line)
        command = os.environ.get(NOTIFY_ENV, "").strip()
        if command:
            subprocess.run(
                [str(Path(command).expanduser()), event, text],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=TIMEOUT_S,
                check=True,
            )
    except (OSError, ValueError, RuntimeError, subprocess.SubprocessError) as error:
        log.warning("nobody could be told (%s)", error)
