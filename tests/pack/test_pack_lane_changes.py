"""A pack of a campaign whose model moved to another lane: it verifies, says so, and cannot be made to say otherwise."""

from __future__ import annotations

from html import unescape
from pathlib import Path

import pack_campaign
import pytest
import typer
from pack_campaign import MODEL, Campaign
from typer.testing import CliRunner

from evpack.cli import diff as diff_command
from evpack.errors import EvidenceError
from evpack.files import read_json, write_json
from evpack.pack import layout
from evpack.pack.build import BuiltPack, build
from evpack.pack.layout import LayoutName
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands, verify_pack
from evpack.plan.lane_changes import LaneChange, LaneChanges

CHANGE = LaneChange(
    model=MODEL.name,
    from_lane="gpu1_s",
    to_lane="gpu2_s",
    step=f"{MODEL.name}.calibrate",
    batch=4,
    changed_at="2026-01-01T00:00:00Z",
    dag_run="resumed",
)


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A finished campaign on one device, and after it was resumed on two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pack_campaign, "MODEL", MODEL.model_copy(update={"devices": 1, "lane": "gpu1_s"}))
        campaign = Campaign(tmp_path_factory.mktemp("moved") / "run").write()
        write(campaign, CHANGE)
        return campaign.finish()


def write(campaign: Campaign, *changes: LaneChange) -> None:
    document = LaneChanges(plan_digest=campaign.plan.digest(), changes=changes)
    write_json(campaign.run.lane_changes, document.to_json())


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_the_pack_verifies_and_tells(moved: Campaign, signing_key: Path, tmp_path: Path, form: LayoutName) -> None:
    built = build(moved.run, key=signing_key, out=tmp_path / "pack", form=form)
    assert built.fingerprint is not None
    result = verify_pack(built.path, Trust(frozenset({built.fingerprint})), Demands(strict=True))
    assert (result.exit_code, result.verdict) == (0, "PASS"), result.to_json()
    place = layout.LAYOUTS[form].place(layout.LANE_CHANGES)
    assert read_json(built.path / place)["changes"] == [CHANGE.model_dump()]
    for name in (layout.README, layout.PAGE):
        assert CHANGE.text() in unescape((built.path / layout.LAYOUTS[form].place(name)).read_text())


def test_a_comparison_tells_of_the_move(
    moved: Campaign, good_pack: BuiltPack, signing_key: Path, tmp_path: Path
) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    diff_command.register(app)
    app.callback()(lambda: None)
    built = build(moved.run, key=signing_key, out=tmp_path / "pack", html=False)
    page = tmp_path / "diff.html"
    done = CliRunner().invoke(app, ["diff", str(good_pack.path), str(built.path), "--html", str(page)])
    assert f"lanes: {MODEL.id}: {MODEL.lane} -> {CHANGE.text()}" in done.output
    assert CHANGE.text() in unescape(page.read_text())


@pytest.mark.parametrize("wrong", [{"to_lane": "gpu4_s"}, {"from_lane": "gpu2_s"}, {"model": "another"}])
def test_what_cannot_follow_from_the_plan_is_not_packed(
    moved: Campaign, signing_key: Path, tmp_path: Path, wrong: dict[str, str]
) -> None:
    try:
        write(moved, CHANGE.model_copy(update=wrong))
        with pytest.raises(EvidenceError, match="no such change of lane"):
            build(moved.run, key=signing_key, out=tmp_path / "pack")
    finally:
        write(moved, CHANGE)
