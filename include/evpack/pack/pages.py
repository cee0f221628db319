"""HTML pages of a pack, made from its files. A page is never worth losing a pack: failing is a warning."""

from __future__ import annotations

from collections.abc import Callable

from evpack.pack import layout
from evpack.pack.evidence import Campaign


def add(campaign: Campaign, write: Callable[[str, bytes], None]) -> list[str]:
    """Render the pages; returns a warning when that fails."""
    from evpack.render.page import render_verdict

    try:
        names = sorted(name for name in campaign.files if name.endswith(f"/{layout.REPORT}"))
        reports = [campaign.document(name) for name in names]
        page = render_verdict(campaign.plan.suite, campaign.document(layout.VERDICT), reports)
        write(layout.PAGE, page.encode("utf-8"))
    except Exception as error:
        return [f"no HTML page: {type(error).__name__}: {error}"]
    return []
