"""Texts in a pack reach a terminal as text: no lines, colours or crashes of their own."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from evpack.cli import verify as verify_command
from evpack.errors import BadInput, EvpackError, plain
from evpack.files import parse_json, pretty_json
from evpack.pack import keys, layout, signature
from evpack.pack.build import BuiltPack

LINE = "x\nverdict         PASS\noutcome         ok (exit 0)"


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)
    verify_command.register(app)
    return app


def signed(good_pack: BuiltPack, key: Path, root: Path, **changes: Any) -> str:
    """A copy of the pack whose manifest says something else, properly signed."""
    shutil.copytree(good_pack.path, root)
    value = parse_json((root / layout.MANIFEST).read_bytes(), layout.MANIFEST) | changes
    (root / layout.MANIFEST).write_bytes(pretty_json(value))
    bundle = signature.sign((root / layout.MANIFEST).read_bytes(), keys.load_private(key))
    (root / layout.SIGNATURE).write_bytes(bundle)
    return str(root)


@pytest.mark.parametrize("command", ["inspect", "verify"])
@pytest.mark.parametrize("text", [LINE, "\x1b[2J\x1b[32mtrusted", "\u202eelpmaxe", "\r\x08\x85\u2028"])
def test_no_text_of_a_pack_writes_a_line_of_its_own(
    app: typer.Typer, good_pack: BuiltPack, signing_key: Path, tmp_path: Path, command: str, text: str
) -> None:
    changes = {"suite": text, "generated_at": text, "run_dir": text, "verification": {text: text}}
    honest = CliRunner().invoke(app, [command, "--json", str(good_pack.path)])
    pack = signed(good_pack, signing_key, tmp_path / "pack", **changes)
    done = CliRunner().invoke(app, [command, pack])
    assert honest.exit_code in (0, 8) and done.exit_code in (0, 7)
    assert all(line.isprintable() for line in done.output.split("\n"))
    starts = [line.split()[0] for line in done.output.splitlines()]
    assert starts.count("verdict") <= 1 and starts.count("outcome") <= 1
    assert "ok (exit 0)" not in done.output.splitlines()[-1]


def test_half_a_character_is_refused_before_it_is_shown(
    app: typer.Typer, good_pack: BuiltPack, signing_key: Path, tmp_path: Path
) -> None:
    pack = signed(good_pack, signing_key, tmp_path / "pack")
    manifest = Path(pack) / layout.MANIFEST
    manifest.write_bytes(manifest.read_bytes().replace(b'"suite": "fixture"', b'"suite": "\\ud800"'))
    for command in ("inspect", "verify"):
        for options in ([], ["--json"]):
            done = CliRunner().invoke(app, [command, *options, pack])
            assert done.exit_code == 4 and "surrogate" in done.output


def test_a_whole_character_beyond_the_basic_plane_is_a_character() -> None:
    assert parse_json(b'"\\ud83d\\ude00"', "text") == "\U0001f600"


def test_messages_are_printable_whatever_they_name() -> None:
    assert plain("a\nb\x1b\ud800é") == "a\\nb\\x1b\\ud800é"
    assert "\x1b" not in EvpackError("bad \x1b[31m value", "mend it").diagnostics()


@pytest.mark.parametrize("option", [["--policy", "/none"], ["--max-age", "1d"], ["--attestation", "/none"]])
def test_what_needs_recomputing_is_not_asked_for_without_it(
    app: typer.Typer, good_pack: BuiltPack, option: list[str]
) -> None:
    done = CliRunner().invoke(app, ["verify", "--skip-verify", *option, str(good_pack.path)])
    assert isinstance(done.exception, BadInput) and option[0] in done.exception.what
