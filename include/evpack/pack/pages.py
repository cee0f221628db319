"""HTML pages of a pack, made from its files. A page is never worth losing a pack: failing is a warning."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator
from typing import Any

from evpack.evaluation.report import check_report
from evpack.pack import layout
from evpack.pack.cells import cell_states
from evpack.pack.evidence import Campaign
from evpack.pack.recheck import Recheck
from evpack.pack.recheck_report import pack_name


def add(result: Recheck, signer: str | None, write: Callable[[str, bytes], None]) -> list[str]:
    """Render one page per report and one for the pack; returns a warning when that fails.

    Args:
        write: takes a name and bytes.

    Raises:
        OSError: when a page cannot be written.
    """
    from evpack.render.guards import guard_figures
    from evpack.render.page import render_pack, render_report

    campaign = result.campaign
    try:
        links: dict[str, str] = {}
        figures = []
        for path, place in _readable(campaign):
            name = place.removesuffix(layout.REPORT) + layout.REPORT_PAGE
            report = check_report(campaign.files[place], place)
            write(name, render_report(report).encode("utf-8"))
            figures.append(guard_figures(report))
            links[path] = posixpath.relpath(name, posixpath.dirname(campaign.at(layout.PAGE)))
        documents = (layout.VERDICT, layout.SCENARIO_SUMMARY, layout.INTERVENTION_SUMMARY)
        verdict, summary, acted = map(campaign.document, documents)
        states = cell_states(verdict, summary)
        low, high = campaign.policy.acceptance
        page = render_pack(
            suite=campaign.plan.suite,
            level=result.level,
            signer=signer,
            verdict=verdict,
            cells=[
                {**cell, "state": state.state, "got": state.got}
                for cell, state in zip(summary["cells"], states, strict=True)
            ],
            limits=(low, high + campaign.policy.number("metrics.pm_ratio.hysteresis_ratio")),
            guards=campaign.settings.guards_order,
            links=links,
            provenance=list(_provenance(campaign)),
            figures=figures,
            remediated={guard: acted[guard]["reports"] for guard in ("spectral", "variance")},
        )
        write(layout.PAGE, page.encode("utf-8"))
    except OSError:
        raise  # of the disk, not of the page: half of one would be sealed
    except Exception as error:
        return [f"no HTML page: {type(error).__name__}: {error}"]
    return []


def _readable(campaign: Campaign) -> Iterator[tuple[str, str]]:
    """Reports that were recomputed: path in the run directory, name in the pack."""
    from evpack.verdict.evidence import expected_reports, read_report

    for key, path in expected_reports(campaign.plan).items():
        found = read_report(campaign.plan, key, path, lambda name: campaign.files.get(pack_name(name)))
        if found is not None and found.report is not None:
            yield path, pack_name(path)


def _provenance(campaign: Campaign) -> Iterator[tuple[str, Any]]:
    source = campaign.document(layout.SOURCE) if campaign.has(layout.SOURCE) else {}
    machine = campaign.document(layout.ENVIRONMENT) if campaign.has(layout.ENVIRONMENT) else {}
    yield "Code", f"{source.get('commit')}{' with local changes' if source.get('dirty') else ''}"
    yield "Repository", source.get("uri") or "no remote"
    for model in campaign.plan.models:
        yield model.id, model.source.revision or "not pinned"
    for change in campaign.plan.lane_changes:
        yield "Change of lane", f"{change.text()}; windows and seeds stayed the same"
    yield "Plan", campaign.digests[0]
    yield "Policy", campaign.digests[1]
    yield "Built on", f"{machine.get('platform')}, Python {machine.get('python_version')}"
    yield "Devices", machine.get("gpu_name") or "cpu"
    packages = machine.get("packages") or {}
    yield "Packages", ", ".join(f"{name} {version}" for name, version in sorted(packages.items()) if version)
