"""Guards judged again from packed figures: forgers who also make the block fit, and what cannot be made again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pack_campaign import MODEL
from pack_guards import BROKEN, SCALED

from evpack.catalog.policy import resolve_policy
from evpack.files import pretty_json, sha256_bytes
from evpack.guards import chain
from evpack.guards.hooks_records import ActivationRecords
from evpack.guards.spectral_records import SpectralRecords
from evpack.pack import inventory, layout
from evpack.pack.build import BuiltPack
from evpack.pack.inventory import Files
from evpack.pack.recheck import recheck

PLACE = f"reports/{MODEL.name}/"
CALIBRATION = PLACE + "calibration/"
SCALE, NAN, QUANT = PLACE + "errors/scale_explosion/", PLACE + "errors/nan_injection/", PLACE + "quant_clean/run_1/"
POLICY = resolve_policy("balanced", "small")
Change = Callable[[dict[str, Any]], Any]


class Forged:
    """The files of a good pack, changed with everything that binds them."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)

    def change(self, name: str, change: Change) -> Forged:
        value = json.loads(self.files[name])
        change(value)
        self.files[name] = pretty_json(value)
        return self

    def report(self, place: str, change: Change) -> Forged:
        """Change a report and its runtime manifest."""
        self.change(place + layout.REPORT, change)
        digest = sha256_bytes(self.files[place + layout.REPORT])
        return self.change(place + layout.RUNTIME, lambda value: value["report"].update(sha256=digest))

    def problems(self, place: str) -> list[str]:
        """What is wrong with one report."""
        result = recheck(Files(content=self.files), layout.LAYOUTS["v1"])
        return [text for text in result.errors if text.startswith(place + layout.REPORT)]


@pytest.fixture
def forged(good_pack: BuiltPack) -> Forged:
    return Forged(dict(inventory.load(good_pack.path).files))


def test_nothing_forged_nothing_found(forged: Forged) -> None:
    assert [forged.problems(place) for place in (SCALE, NAN, QUANT)] == [[], [], []]


def test_a_matrix_left_out_is_missed_though_the_block_fits_the_rest(forged: Forged) -> None:
    name = QUANT + layout.SPECTRAL
    forged.change(name, lambda value: value["matrices"].pop(SCALED))
    records = SpectralRecords.parse(forged.files[name], name)
    baseline = SpectralRecords.parse(forged.files[CALIBRATION + layout.SPECTRAL], "baseline")
    block = chain.spectral_block(records, baseline, POLICY, chain.Declaration())

    def fit(report: dict[str, Any]) -> None:
        report["spectral"].update(block)
        report["spectral"]["records"]["subject"]["sha256"] = sha256_bytes(forged.files[name])

    assert forged.report(QUANT, fit).problems(QUANT) == [
        f"{QUANT}{layout.REPORT}: {layout.SPECTRAL}: figures missing, left over or of other bytes for {SCALED}"
    ]


def test_fewer_sampled_windows_are_told_though_the_blocks_fit(forged: Forged) -> None:
    names = QUANT + layout.ACTIVATIONS, f"{CALIBRATION}run_1/{layout.ACTIVATIONS}"

    def shorten(value: dict[str, Any]) -> None:
        value["windows"].pop()
        for module in value["modules"].values():
            module["edge_risk"].pop()
            module["mean_square"].pop()

    for name in names:
        forged.change(name, shorten)
    now, before = (ActivationRecords.parse(forged.files[name], name) for name in names)
    digests = {
        side: sha256_bytes(forged.files[name]) for side, name in zip(("subject", "baseline"), names, strict=True)
    }

    def fit(report: dict[str, Any]) -> None:
        report["rmt"].update(chain.rmt_block(now, before, POLICY, chain.Declaration()))
        report["variance"].update(chain.variance_block(now, before, POLICY, lambda _: None))
        for guard in ("rmt", "variance"):
            for side, digest in digests.items():
                report[guard]["records"][side]["sha256"] = digest

    found = forged.report(QUANT, fit).problems(QUANT)
    assert len(found) == 1
    assert "windows are" in found[0]


def without_figures(report: dict[str, Any]) -> None:
    report["spectral"] = {"evaluated": True, **chain.could_not_run("spectral", "RuntimeError: no")}
    report["validation"]["spectral_stable"] = False


def test_that_a_guard_could_not_run_is_believed_where_it_left_no_figures(forged: Forged) -> None:
    del forged.files[QUANT + layout.SPECTRAL]
    assert forged.report(QUANT, without_figures).problems(QUANT) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda block: block.update(status="warn"),
        lambda block: block.update(caps_applied=0),
        lambda block: block["failures"][0].update(severity="warning"),
        lambda block: block.update(failures=[]),
    ],
)
def test_no_other_block_is_believed_without_figures(forged: Forged, change: Change) -> None:
    del forged.files[QUANT + layout.SPECTRAL]
    forged.report(QUANT, without_figures).report(QUANT, lambda report: change(report["spectral"]))
    assert any("its figures are missing" in text or "validation" in text for text in forged.problems(QUANT))


def test_a_subject_that_was_not_loaded_has_the_finding_that_says_so(forged: Forged) -> None:
    def unload(value: dict[str, Any]) -> None:
        for window in value["windows"]:
            window.update(nll_sum=None, reason="load_failed:OSError: no weights")

    forged.change(NAN + layout.RECORDS, unload)
    found = forged.problems(NAN)
    assert found, "the report's own metric no longer follows"
    report = json.loads(forged.files[NAN + layout.REPORT])
    assert report["primary_metric"]["degraded"] is True


def test_a_finding_about_loading_needs_losses_that_are_missing_because_of_it(forged: Forged) -> None:
    finding = {"type": "load_failed", "severity": "fatal", "message": "load_failed:X", "tensors": [], "count": 1}

    def add(report: dict[str, Any]) -> None:
        report["invariants"]["failures"].append(finding)

    found = forged.report(NAN, add).problems(NAN)
    assert any("loading gave ['load_failed:X'], the losses are missing because of []" in text for text in found)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("model.norm.weight", "is the baseline's or not there"),
        ("model.layers.7.mlp.up_proj.weight", "is the baseline's or not there"),
    ],
)
def test_only_changed_tensors_can_have_lost_finite_elements(forged: Forged, name: str, says: str) -> None:
    def blame(report: dict[str, Any]) -> None:
        report["invariants"]["failures"][0]["tensors"] = [BROKEN, name]

    assert any(says in text for text in forged.report(NAN, blame).problems(NAN))


def test_a_matrix_with_finite_figures_is_not_called_broken(forged: Forged) -> None:
    def heal(value: dict[str, Any]) -> None:
        value["matrices"][BROKEN].update(sigma=1.0, frobenius=1.5)

    forged.change(NAN + layout.SPECTRAL, heal)
    assert any("said to be not finite, its figures are" in text for text in forged.problems(NAN))


def test_a_bootstrap_interval_that_does_not_follow_is_a_warning(forged: Forged) -> None:
    def narrow(report: dict[str, Any]) -> None:
        bounds = report["primary_metric"]["bca"]["ci"]
        report["primary_metric"]["bca"]["ci"] = [bounds[0], bounds[0]]

    assert forged.report(QUANT, narrow).problems(QUANT) == []
    result = recheck(Files(content=forged.files), layout.LAYOUTS["v1"])
    assert [text for text in result.warnings if "more than 5%" in text]
    assert not result.errors


def kept_files() -> dict[str, bytes]:
    return dict(inventory.load(Path(__file__).parent.parent / "packs" / "v1" / "pack").files)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("rmt_probe.json", lambda value: value.update(triggered=not value["triggered"])),
        ("rmt_probe.json", lambda value: value.update(epsilon=9.0)),
        ("rmt_probe.json", lambda value: value.update(error_type="nan_injection")),
        ("probe_activation_records.json", lambda value: value["windows"].reverse()),
        ("baseline_probe_activation_records.json", lambda value: value["modules"].pop("model.norm")),
    ],
)
def test_a_probe_follows_from_the_figures_beside_it(file: str, change: Change) -> None:
    place = "reports/fixture/errors/rmt_norm_noise/"
    forged = Forged(kept_files())
    untouched = forged.problems(place)
    forged.change(place + file, change)
    assert len(forged.problems(place)) > len(untouched)
