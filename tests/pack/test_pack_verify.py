"""The verifier as a whole: any change is noticed, any input gives a typed outcome, and the command line says so."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from pack_campaign import Campaign
from typer.testing import CliRunner

from evpack.catalog.policy import resolve_policy
from evpack.cli import build as build_command
from evpack.cli import keygen as keygen_command
from evpack.cli import verify as verify_command
from evpack.errors import BadInput, EvidenceError
from evpack.files import digest_json, pretty_json
from evpack.pack import inventory, keys, layout, manifest
from evpack.pack.build import BuiltPack, build
from evpack.pack.inventory import Files
from evpack.pack.recheck import recheck
from evpack.pack.trust import Trust
from evpack.pack.verify import Demands, verify_files, verify_pack

ANY = st.integers(0, 10**9)


@pytest.fixture(scope="module")
def contents(good_pack: BuiltPack) -> dict[str, bytes]:
    return dict(inventory.load(good_pack.path).files)


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    for command in (build_command, keygen_command, verify_command):
        command.register(app)
    return app


def verified(files: dict[str, bytes], built: BuiltPack, **options: Any) -> Any:
    trust = Trust(frozenset({str(built.fingerprint)}))
    return verify_files("pack", Files(content=files), [], trust, Demands(strict=True, **options))


def rechecked(files: dict[str, bytes]) -> Any:
    return recheck(Files(content=files), layout.LAYOUTS["v1"])


@given(
    which=ANY, place=ANY, change=st.sampled_from(["flip", "insert", "delete", "truncate"]), value=st.integers(1, 255)
)
def test_no_byte_of_any_file_can_change(
    contents: dict[str, bytes], good_pack: BuiltPack, which: int, place: int, change: str, value: int
) -> None:
    names = sorted(contents)
    name = names[which % len(names)]
    data = contents[name]
    at = place % len(data)
    changed = {
        "flip": data[:at] + bytes([data[at] ^ value]) + data[at + 1 :],
        "insert": data[:at] + bytes([value]) + data[at:],
        "delete": data[:at] + data[at + 1 :],
        "truncate": data[:at],
    }[change]
    result = verified(contents | {name: changed}, good_pack)
    assert result.exit_code in (4, 5, 6) and result.findings


@given(one=ANY, other=ANY)
def test_no_two_files_can_change_places(contents: dict[str, bytes], good_pack: BuiltPack, one: int, other: int) -> None:
    names = sorted(contents)
    a, b = names[one % len(names)], names[other % len(names)]
    result = verified(contents | {a: contents[b], b: contents[a]}, good_pack)
    assert result.ok == (contents[a] == contents[b])


@given(st.binary(max_size=400))
def test_an_arbitrary_manifest_is_refused_by_a_typed_error(data: bytes) -> None:
    with pytest.raises(EvidenceError):
        manifest.parse(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(key=ANY, value=json_values)
def test_any_value_in_a_manifest_gives_an_outcome(
    contents: dict[str, bytes], good_pack: BuiltPack, key: int, value: Any
) -> None:
    document = json.loads(contents[layout.MANIFEST])
    name = sorted(document)[key % len(document)]
    files = contents | {layout.MANIFEST: json.dumps(document | {name: value}).encode()}
    assert verified(files, good_pack).exit_code in (4, 5)


@pytest.mark.parametrize("name", [layout.PLAN, layout.SETTINGS, layout.POLICY, layout.SCENARIOS, layout.VERDICT])
@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b"null", b"7", b'"x"', b"\xff", b'{"scenarios": [{}], "schema": 3}']
)
def test_recomputing_anything_malformed_is_a_typed_error(contents: dict[str, bytes], name: str, data: bytes) -> None:
    with contextlib.suppress(EvidenceError, BadInput):
        assert rechecked(contents | {name: data}).errors


def under(pack: BuiltPack, overrides: dict[str, Any], **options: Any) -> Any:
    limits = resolve_policy("balanced", "small", overrides)
    return verify_pack(pack.path, Trust(frozenset({str(pack.fingerprint)})), Demands(policy=limits, **options))


def test_a_pack_is_judged_by_the_callers_policy(good_pack: BuiltPack) -> None:
    agreed = under(good_pack, {})
    assert (agreed.exit_code, agreed.verdict, agreed.verdict_by_policy) == (0, "PASS", "PASS")
    result = under(good_pack, {"acceptance_range": {"max": 1.0001}})
    assert result.exit_code == 7 and "acceptance_range.max" in result.findings[0].text
    assert (result.verdict, result.verdict_by_policy) == ("PASS", "FAIL")
    assert result.to_json()["verdict_by_policy"] == "FAIL"


@pytest.mark.parametrize(
    ("overrides", "verdict"),
    [
        ({"acceptance_range": {"max": 1.2}}, "PASS"),
        ({"acceptance_range": {"max": 1.6}}, "FAIL"),  # the stress passes as well
        ({"drift_band": [0.9999, 1.0001]}, "FAIL"),
        ({"guards.spectral.ratio_cap": 0.001, "guards.spectral.max_caps": 0}, "FAIL"),
        ({"guards.rmt.epsilon_rms": 0.0}, "FAIL"),
        ({"guards.rmt.windows.count": 4}, None),  # figures of other windows are not packed
        ({"guards.variance.deadband": 0.2}, None),
    ],
)
def test_the_verdict_under_other_limits_is_computed_or_not_claimed(
    good_pack: BuiltPack, overrides: dict[str, Any], verdict: str | None
) -> None:
    result = under(good_pack, overrides)
    assert (result.exit_code, result.verdict, result.verdict_by_policy) == (7, "PASS", verdict)


def test_the_command_line_tells_both_verdicts_apart(app: typer.Typer, good_pack: BuiltPack, tmp_path: Path) -> None:
    limits = tmp_path / "policy.json"
    stricter = resolve_policy("balanced", "small", {"acceptance_range": {"max": 1.0001}})
    limits.write_bytes(pretty_json(stricter.to_json()))
    done = CliRunner().invoke(app, ["verify", "--policy", str(limits), str(good_pack.path)])
    assert done.exit_code == 7
    assert "verdict         FAIL by the limits to judge by, PASS by the pack's own\n" in done.output


def test_limits_of_its_own_need_not_be_the_callers(good_pack: BuiltPack) -> None:
    result = under(good_pack, {"acceptance_range": {"max": 1.0001}}, own_limits=True)
    assert (result.exit_code, result.verdict, result.verdict_by_policy) == (0, "PASS", "FAIL")


def test_a_pack_with_another_fault_has_no_verdict_by_other_limits(contents: dict[str, bytes]) -> None:
    text = contents[layout.VERDICT_TEXT].replace(b"PASS", b"FAIL")
    files = Files(content=contents | {layout.VERDICT_TEXT: text})
    stricter = resolve_policy("balanced", "small", {"acceptance_range": {"max": 1.0001}})
    assert recheck(files, layout.LAYOUTS["v1"], stricter).by_limits is None


def test_other_limits_judge_as_if_the_campaign_had_been_judged_by_them(tmp_path: Path, good_pack: BuiltPack) -> None:
    """Made again from the records is what a campaign under these limits reports."""
    overrides = {"acceptance_range": {"max": 1.003}, "guards.spectral.ratio_cap": 0.001}
    other = Campaign(tmp_path / "run")
    other.policy = resolve_policy("balanced", "small", overrides)
    other.plan = other.plan.model_copy(update={"policy_overrides": overrides})
    built = build(other.write().finish().run, key=None)
    theirs = json.loads((built.path / layout.VERDICT).read_bytes())
    assert under(good_pack, overrides).verdict_by_policy == theirs["verdict"] == "FAIL"


def test_a_pack_that_takes_all_memory_is_a_finding(good_pack: BuiltPack, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr("evpack.pack.verify.recheck", greedy)
    result = verify_pack(good_pack.path, Trust(frozenset({str(good_pack.fingerprint)})))
    assert result.exit_code == 7 and "more memory than there is" in result.findings[0].text


def test_a_directory_that_is_no_pack_is_missing(tmp_path: Path) -> None:
    assert verify_pack(tmp_path / "none").exit_code == 3
    assert verify_pack(tmp_path).exit_code == 3
    (tmp_path / "file").write_text("x")
    assert verify_pack(tmp_path / "file").exit_code == 3
    assert verify_pack(tmp_path / ("x" * 300)).exit_code == 3


def test_expectations_of_the_campaign_itself_are_pointed_out(campaign: Campaign, contents: dict[str, bytes]) -> None:
    plan = json.loads(contents[layout.PLAN])
    plan["suite"] = "mine"
    assert any("not a shipped one" in text for text in rechecked(contents | {layout.PLAN: pretty_json(plan)}).warnings)


def test_the_windows_digest_is_the_one_that_records_carry(campaign: Campaign) -> None:
    """The verifier computes it from records, the engine from tokens; they agree on good packs, so a lie must show."""
    name = layout.model_state("example__tiny", "schedule.json")
    built = build(campaign.run, key=None)
    packed = dict(inventory.load(built.path).files)
    schedule = json.loads(packed[name])
    result = rechecked(packed | {name: pretty_json(schedule | {"seq_len": 64})})
    assert any("windows_digest" in text for text in result.errors)


def test_a_pack_with_a_stride_verifies_and_other_tokens_than_its_own_are_noticed(tmp_path: Path) -> None:
    """Of windows that overlap only the last tokens are predicted."""
    campaign = Campaign(tmp_path / "run", stride=32).write().finish()
    packed = dict(inventory.load(build(campaign.run, key=None).path).files)
    assert not rechecked(packed).errors
    name = layout.model_state("example__tiny", "schedule.json")
    changed = json.loads(packed[name]) | {"stride": 64}
    errors = rechecked(packed | {name: pretty_json(changed)}).errors
    assert any("stride is 64, the settings ask for 32" in text for text in errors)
    assert any("other tokens are predicted in a window than the 64" in text for text in errors)


def test_verifying_imports_neither_torch_nor_airflow_nor_scipy_nor_jinja(good_pack: BuiltPack) -> None:
    code = (
        "import sys; from pathlib import Path; from evpack.pack.verify import verify_pack;"
        f"assert verify_pack(Path({str(good_pack.path)!r})).exit_code == 8;"
        "heavy = {'torch', 'transformers', 'airflow', 'scipy', 'jinja2', 'datasets'};"
        "sys.exit(','.join(heavy & {name.split('.')[0] for name in sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# --- command line ---------------------------------------------------------------------------------
def test_the_command_line_pins_by_key_file_fingerprint_and_store(
    app: typer.Typer, good_pack: BuiltPack, signing_key: Path, tmp_path: Path
) -> None:
    store = tmp_path / "store.json"
    store.write_text(json.dumps([good_pack.fingerprint]))
    for option in (
        ["--trusted-key", str(keys.public_path(signing_key))],
        ["--expected-fingerprint", str(good_pack.fingerprint)],
        ["--trust-store", str(store)],
    ):
        done = CliRunner().invoke(app, ["verify", "--strict", *option, str(good_pack.path)])
        assert done.exit_code == 0, done.output
        assert "verdict         PASS" in done.output and "a trusted key" in done.output


def test_without_a_trusted_key_the_outcome_says_integrity_only(
    app: typer.Typer, good_pack: BuiltPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["verify", str(good_pack.path)])
    assert done.exit_code == 8 and "integrity only" in done.output
    assert CliRunner().invoke(app, ["verify", "--strict", str(good_pack.path)]).exit_code == 5
    (tmp_path / "evpack").mkdir()
    (tmp_path / "evpack" / "trusted_keys.json").write_text(json.dumps({"fingerprints": [good_pack.fingerprint]}))
    assert CliRunner().invoke(app, ["verify", "--strict", str(good_pack.path)]).exit_code == 0


def test_json_on_standard_output_and_in_a_file(app: typer.Typer, good_pack: BuiltPack, tmp_path: Path) -> None:
    out = tmp_path / "outcome.json"
    pin = ["--expected-fingerprint", str(good_pack.fingerprint)]
    done = CliRunner().invoke(app, ["verify", *pin, "--json", "--json-out", str(out), str(good_pack.path)])
    value = json.loads(done.stdout)
    assert value == json.loads(out.read_bytes())
    assert (value["ok"], value["exit"], value["verdict"], value["signer_fingerprint"]) == (
        True,
        0,
        "PASS",
        good_pack.fingerprint,
    )


@pytest.mark.parametrize(
    "options",
    [
        ["--trusted-key", "/nonexistent/key"],
        ["--trust-store", "/nonexistent/store"],
        ["--expected-fingerprint", "abc"],
        ["--policy", "/nonexistent/policy"],
    ],
)
def test_wrong_usage_is_the_operators_fault(app: typer.Typer, good_pack: BuiltPack, options: list[str]) -> None:
    done = CliRunner().invoke(app, ["verify", *options, str(good_pack.path)])
    assert isinstance(done.exception, BadInput) and done.exception.exit_code == 2


def test_the_outcome_is_not_written_into_the_pack(app: typer.Typer, good_pack: BuiltPack) -> None:
    done = CliRunner().invoke(app, ["verify", "--json-out", str(good_pack.path / "o.json"), str(good_pack.path)])
    assert isinstance(done.exception, BadInput)
    assert not (good_pack.path / "o.json").exists()


def test_keygen_then_build_then_verify(app: typer.Typer, campaign: Campaign, tmp_path: Path) -> None:
    key = tmp_path / "team.pem"
    made = CliRunner().invoke(app, ["keygen", str(key)])
    assert made.exit_code == 0 and "sha256:" in made.output and "PRIVATE" not in made.output
    assert isinstance(CliRunner().invoke(app, ["keygen", str(key)]).exception, BadInput)
    built = CliRunner().invoke(app, ["build", str(campaign.run.root), "--signing-key", str(key)])
    assert built.exit_code == 0 and "sealed" in built.output
    pack = str(campaign.run.pack)
    done = CliRunner().invoke(app, ["verify", "--strict", "--trusted-key", str(tmp_path / "team.pub.pem"), pack])
    assert done.exit_code == 0, done.output
    again = CliRunner().invoke(app, ["build", str(campaign.run.root), "--signing-key", str(key)])
    assert "kept" in again.output


def test_build_goes_by_the_frozen_settings(app: typer.Typer, campaign: Campaign, tmp_path: Path) -> None:
    environ = {"EVPACK_HOME": str(tmp_path / "home")}
    done = CliRunner().invoke(app, ["build", str(campaign.run.root)], env=environ)
    assert done.exit_code == 0 and (tmp_path / "home" / "keys" / "signing_key").is_file()
    unsigned = CliRunner().invoke(app, ["build", str(campaign.run.root), "--unsigned", "--skip-html"], env=environ)
    assert unsigned.exit_code == 0 and "signer          none" in unsigned.output and "superseded" in unsigned.output
    assert isinstance(CliRunner().invoke(app, ["build", str(tmp_path)]).exception, BadInput)


def test_a_damaged_copy_is_told_from_the_original(
    app: typer.Typer, good_pack: BuiltPack, signing_key: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(good_pack.path, copy)
    report = next(copy.rglob(layout.REPORT))
    data = bytearray(report.read_bytes())
    data[100] ^= 1
    report.write_bytes(data)
    done = CliRunner().invoke(app, ["verify", "--trusted-key", str(keys.public_path(signing_key)), str(copy)])
    assert done.exit_code == 6 and "bytes differ" in done.output


def test_runs_that_share_windows_are_found_though_the_digest_fits(contents: dict[str, bytes]) -> None:
    name = layout.model_state("example__tiny", "schedule.json")
    schedule = json.loads(contents[name])
    schedule["runs"][1]["preview"] = schedule["runs"][0]["preview"]
    schedule["digest"] = digest_json({key: value for key, value in schedule.items() if key != "digest"})
    assert any("shares windows" in text for text in rechecked(contents | {name: pretty_json(schedule)}).errors)


def test_many_reports_are_judged_in_processes_with_the_same_outcome(
    good_pack: BuiltPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evpack.pack import recheck as module

    trust = Trust(frozenset({str(good_pack.fingerprint)}))
    alone = verify_pack(good_pack.path, trust, jobs=1)
    monkeypatch.setattr(module, "_PARALLEL_FROM", 1)
    monkeypatch.setattr(module, "_CHUNK", 2)
    assert verify_pack(good_pack.path, trust, jobs=2).to_json() == alone.to_json()


@pytest.mark.parametrize(("host", "processes"), [(1, 1), (2, 2), (64, 3)])
def test_a_large_host_takes_no_more_memory(
    good_pack: BuiltPack, monkeypatch: pytest.MonkeyPatch, host: int, processes: int
) -> None:
    """Also where a system does not say which cores a process may use."""
    asked: list[int] = []
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: host)
    monkeypatch.setattr("evpack.pack.verify.recheck", lambda *_, jobs, **__: asked.append(jobs))
    with contextlib.suppress(AttributeError):
        verify_pack(good_pack.path)
    assert asked == [processes]


def test_without_processes_it_takes_longer_and_finds_the_same(
    good_pack: BuiltPack, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evpack.pack import recheck as module

    def none(*_: object, **__: object) -> None:
        raise OSError("no semaphores")

    monkeypatch.setattr(module, "_PARALLEL_FROM", 1)
    monkeypatch.setattr(module, "ProcessPoolExecutor", none)
    assert verify_pack(good_pack.path, Trust(frozenset({str(good_pack.fingerprint)})), jobs=2).exit_code == 0


@pytest.mark.parametrize(("moved", "code"), [(0.0, 0), (0.001, 0), (0.05, 7), (-0.05, 7)])
def test_a_baseline_that_was_scored_again_is_the_same_baseline(
    tmp_path: Path, signing_key: Path, monkeypatch: pytest.MonkeyPatch, moved: float, code: int
) -> None:
    campaign = Campaign(tmp_path / "run").write()
    campaign.report(campaign.plan.scenario("quant_clean"), 2, again=moved)
    campaign.finish()
    if code:
        with pytest.raises(EvidenceError, match="scored again"):
            build(campaign.run, key=signing_key, html=False)
        monkeypatch.setattr("evpack.pack.build._refuse_inconsistent", lambda *_: None)
    built = build(campaign.run, key=signing_key, html=False)
    result = verify_pack(built.path, Trust(frozenset({str(built.fingerprint)})), Demands(strict=True))
    assert result.exit_code == code, result.to_json()


def test_a_flood_of_names_is_one_finding(good_pack: BuiltPack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "pack"
    shutil.copytree(good_pack.path, root)
    for number in range(50):
        (root / "a" / str(number)).mkdir(parents=True)
    monkeypatch.setattr(inventory, "MAX_ENTRIES", 40)
    result = verify_pack(root, Trust(frozenset({str(good_pack.fingerprint)})), Demands(strict=True))
    assert (result.exit_code, len(result.findings)) == (6, 1)
