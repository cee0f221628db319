"""The sweep on the fixture model: real edits, real scoring, few windows; and the shipped entry reproduced."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evpack.assets import fixture_text
from evpack.assets.demo import prepare_demo
from evpack.catalog.edit_spec import ResolvedEdit, parse_edit_spec, resolve_edit
from evpack.catalog.tuned import load_tuned
from evpack.cli.main import build_app
from evpack.data.windows import WindowDemand, WindowSet, schedule_runs
from evpack.errors import BadInput, CheckpointError, DataError, MissingFile
from evpack.home import Home
from evpack.tuning import Request, sweep, tune

DEPLOYMENT = Home.locate()
"""The shell's, where the demo model is kept; a test sees no variable of it."""

QUICK = {
    "suite": "fixture",
    **dict.fromkeys(("drift_calibration_runs", "clean_edit_runs", "stress_edit_runs"), 1),
}


def rung(sparsity: float) -> ResolvedEdit:
    entry = {"status": "selected", "scope": "ffn", "sparsity": sparsity}
    return resolve_edit(parse_edit_spec("magnitude_prune:clean:ffn"), entry)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "home")


@pytest.fixture
def rungs(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Replace the ladder by prunings, mild ones first."""

    def put(*sparsities: float) -> None:
        monkeypatch.setattr(sweep, "ladder", lambda kind, checkpoint: tuple(map(rung, sparsities)))

    return put


def run(home: Home, *, lines: list[str] | None = None, windows: int = 32, **params: Any) -> dict[str, Any]:
    request = Request("fixture", {**QUICK, **params}, ["magnitude_prune"], windows)
    ((model, kind, entry),) = tune(request, home, ([] if lines is None else lines).append)
    assert (model, kind) == ("fixture", "magnitude_prune")
    return entry


def test_the_strongest_rung_that_passes(home: Home, rungs: Callable[..., None]) -> None:
    rungs(0.05, 0.12, 0.7)
    lines: list[str] = []
    entry = run(home, lines=lines)
    assert (entry["status"], entry["sparsity"], entry["edit_dir_name"]) == ("selected", 0.12, "prune_12pct_clean")
    (dropped,) = entry["measured"]["stronger"]
    assert dropped["sparsity"] == 0.7 and dropped["windows"] == 64 and dropped["ratio"] > 1.1
    assert dropped["acceptance"] is None and "reject" in dropped["problem"]
    assert 0.99 < entry["measured"]["ratio"] < 1.02
    assert len(lines) == 3 and "of 864 windows" in lines[0]  # 928 windows of text, 64 are the campaign's own
    assert not list(home.root.iterdir())


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ("rmt: {epsilon_rms: 0.000001}", "guard rmt: root mean square of ln edge risk ratio"),
        ("spectral: {max_caps: 0, ratio_cap: 0.000001}", "guard spectral: "),
    ],
)
def test_a_rung_that_a_guard_would_fail_is_dropped(
    home: Home, rungs: Callable[..., None], tmp_path: Path, limits: str, said: str
) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(f"guards: {{{limits}}}")
    rungs(0.05)
    entry = run(home, config_file=str(file))
    assert entry["status"] == "skipped" and f"its first run does not pass ({said}" in entry["reason"]
    unasked = run(home, config_file=str(file), guards_order="invariants,variance")
    assert (unasked["status"], unasked["sparsity"]) == ("selected", 0.05)


def test_no_rung_passes(home: Home, rungs: Callable[..., None]) -> None:
    rungs(0.7)
    entry = run(home)
    assert entry["status"] == "skipped" and "70% sparsity" in entry["reason"]


def test_a_rung_that_cannot_be_made_is_passed_over(
    home: Home, rungs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    rungs(0.1, 0.2)
    make = sweep.apply_edit

    def only_mild(checkpoint: Any, edit: ResolvedEdit, directory: Path, **options: Any) -> Any:
        if edit.sparsity == 0.2:
            raise CheckpointError("makes entries non-finite")
        return make(checkpoint, edit, directory, **options)

    monkeypatch.setattr(sweep, "apply_edit", only_mild)
    entry = run(home)
    assert entry["sparsity"] == 0.1
    assert entry["measured"]["stronger"][0]["problem"] == "makes entries non-finite"


def test_when_nothing_can_be_made_the_checkpoint_is_to_blame(
    home: Home, rungs: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*args: Any, **kwargs: Any) -> Any:
        raise CheckpointError("tensor 'x' has element type I8")

    rungs(0.1)
    monkeypatch.setattr(sweep, "apply_edit", none)
    with pytest.raises(CheckpointError, match="element type I8"):
        run(home)


def test_the_pool_leaves_the_campaigns_windows_alone() -> None:
    import numpy as np

    tokens = np.arange(300, dtype=np.int32)[:, None].repeat(4, axis=1)
    demand = WindowDemand(3, 16, 16, 4, 4)
    campaign = WindowSet(tokens, schedule_runs(300, demand), "text", "d", 4)
    pool = sweep._pool(campaign, demand, 128)
    used = {row for one in campaign.runs for row, _ in one.in_order()}
    drawn = [int(pool.tokens[row, 0]) for one in pool.runs for row, _ in one.in_order()]
    assert len(drawn) == len(set(drawn)) == 128 and not used.intersection(drawn)
    assert len(sweep._pool(campaign, demand, 10).runs) == 1
    assert len(sweep._pool(campaign, demand, 129).runs) == 5, "not fewer windows than asked for"
    with pytest.raises(DataError, match=r"204 windows .*besides the 96 of the campaign's runs"):
        sweep._pool(campaign, demand, 300)


@pytest.mark.parametrize(
    ("params", "kind", "named"),
    [
        ({"clean_edit_runs": 0}, BadInput, "CLEAN_EDIT_RUNS"),
        ({"text_path": "/no/such/text"}, MissingFile, "/no/such/text"),
        ({"suite": "nope"}, BadInput, "nope"),
    ],
)
def test_bad_requests(home: Home, params: dict[str, Any], kind: type[Exception], named: str) -> None:
    with pytest.raises(kind, match=named):
        run(home, **params)


def test_unknown_edits_and_too_few_windows(home: Home) -> None:
    with pytest.raises(BadInput, match="'distil' cannot be tuned"):
        list(tune(Request("fixture", QUICK, ["distil"]), home, print))
    with pytest.raises(BadInput, match="0 windows"):
        list(tune(Request("fixture", QUICK, windows=0), home, print))


def test_the_command_writes_a_file_that_a_campaign_reads(
    home: Home, rungs: Callable[..., None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    rungs(0.08)
    monkeypatch.setenv("EVPACK_HOME", str(home.root))
    out = tmp_path / "tuned.json"
    out.write_text(json.dumps({"models": {"other": {"quant_rtn": {"status": "selected", "bits": 8}}}}))
    options = [item for name, value in QUICK.items() if name != "suite" for item in ("-p", f"{name}={value}")]
    command = ["tune", "fixture", "--text", str(fixture_text()), "--windows", "32", "--edit", "magnitude_prune"]
    result = CliRunner().invoke(build_app(), [*command, *options, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0 and "magnitude_prune selected" in result.output
    tuned = load_tuned(str(out))
    assert (tuned.entry("magnitude_prune", "fixture") or {})["sparsity"] == 0.08
    assert tuned.entry("quant_rtn", "other") is not None
    with pytest.raises(BadInput, match="no directory"):
        CliRunner().invoke(build_app(), [*command, "--out", "/no/such/place/x.json"], catch_exceptions=False)


def command(out: Path | None, *edits: str) -> list[str]:
    options = [item for name, value in QUICK.items() if name != "suite" for item in ("-p", f"{name}={value}")]
    kinds = [item for edit in edits for item in ("--edit", edit)]
    place = [] if out is None else ["--out", str(out)]
    return ["tune", "fixture", "--suite", "fixture", "--windows", "32", *options, *kinds, *place]


@pytest.mark.parametrize("to_file", [True, False])
@pytest.mark.parametrize("end", [CheckpointError("the second cannot be tried"), KeyboardInterrupt()])
def test_what_was_found_outlives_an_error_and_an_interruption(
    end: BaseException, to_file: bool, home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """And another sweep's entries, written while this one measured, stay."""
    from typer.testing import CliRunner

    out = tmp_path / "tuned.json"
    theirs = {"models": {"other": {"quant_rtn": {"status": "selected", "bits": 8}}}}

    def rungs(kind: str, checkpoint: Any) -> tuple[ResolvedEdit, ...]:
        if kind == "fp8_quant":
            raise end
        out.write_text(json.dumps(theirs))
        return (rung(0.08),)

    monkeypatch.setattr(sweep, "ladder", rungs)
    monkeypatch.setenv("EVPACK_HOME", str(home.root))
    done = CliRunner().invoke(build_app(), command(out if to_file else None, "magnitude_prune", "fp8_quant"))
    assert done.exit_code != 0
    if not to_file:
        out.write_text(done.stdout)
    tuned = load_tuned(str(out))
    assert (tuned.entry("magnitude_prune", "fixture") or {})["sparsity"] == 0.08
    assert (tuned.entry("quant_rtn", "other") is not None) is to_file
    assert not list(home.root.iterdir())


def test_a_sweep_that_is_told_to_end_leaves_nothing(home: Home, tmp_path: Path) -> None:
    home.create()
    environ = {**os.environ, "EVPACK_HOME": str(home.root)}
    process = subprocess.Popen(
        [sys.executable, "-m", "evpack.cli.main", *command(tmp_path / "tuned.json", "quant_rtn")],
        env=environ,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    assert process.stderr.readline().startswith(b"baseline:"), "it is at work"
    assert list(home.root.iterdir())
    process.terminate()
    process.communicate()
    assert process.returncode == 130
    assert not list(home.root.iterdir())


@pytest.mark.parametrize("place", ["/proc/tuned.json", "."])
def test_a_file_that_cannot_be_written_is_refused_before_the_sweep(
    place: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    def too_late(*_: object) -> None:
        raise AssertionError("measured before the file was looked at")

    monkeypatch.setenv("EVPACK_HOME", str(home.root))
    monkeypatch.setattr("evpack.tuning.tune", too_late)
    with pytest.raises(BadInput, match=rf"--out {place} cannot be written"):
        CliRunner().invoke(build_app(), ["tune", "fixture", "--out", place], catch_exceptions=False)


def reproduces(model: str, suite: str, kinds: list[str], home: Home) -> None:
    """Tuning gives the shipped entries again; figures may differ in the last digits between machines."""
    for _, kind, found in tune(Request(model, {"suite": suite}, kinds), home, lambda line: None):
        expected = load_tuned(None).entry(kind, model)
        assert expected is not None
        ours, theirs = found.pop("measured"), dict(expected).pop("measured")
        volatile = {"reason", "measured"}
        assert {k: v for k, v in found.items() if k not in volatile} == {
            k: v for k, v in expected.items() if k not in volatile
        }
        for name in ("model_digest", "text_digest", "windows_digest", "windows", "runs"):
            assert ours[name] == theirs[name]
        assert ours["ratio"] == pytest.approx(theirs["ratio"], abs=1e-4)
        assert ours["acceptance"]["probability"] == pytest.approx(theirs["acceptance"]["probability"], abs=2e-3)


def test_a_shipped_entry_is_reproduced(home: Home) -> None:
    reproduces("fixture", "fixture", ["fp8_quant"], home)


@pytest.mark.slow
def test_all_shipped_entries_of_the_fixture_are_reproduced(home: Home) -> None:
    reproduces("fixture", "fixture", [], home)


@pytest.mark.slow
def test_all_shipped_entries_of_the_demo_are_reproduced() -> None:
    prepare_demo(DEPLOYMENT, print)
    reproduces("SmolLM2-135M", "demo", [], DEPLOYMENT)
