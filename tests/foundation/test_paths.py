"""Names that become paths."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.suites import named_model
from evpack.errors import BadInput
from evpack.home import Home, safe_name
from evpack.rundir import RunDir, checked_id, checked_step, model_name
from evpack.settings import Settings


def test_model_names_follow_the_reference() -> None:
    assert model_name("mistralai/Mistral-7B-v0.1") == "mistralai__mistral-7b-v01"
    assert model_name("My Model") == "my_model"


@pytest.mark.parametrize("model_id", ["", "///", "...", "state", "Reports", "_x", "x" * 200])
def test_unusable_model_ids_are_refused(model_id: str) -> None:
    with pytest.raises(BadInput, match="model id"):
        model_name(model_id)


@given(st.text())
def test_no_id_leaves_its_directory(text: str) -> None:
    home = Home(Path("/home-of-evpack"))
    inside = home.run_dir("dag", text)
    assert inside.parent == home.runs / "dag"
    assert safe_name(text) not in ("", ".", "..")
    for check in (checked_id, lambda value, _: checked_step(value)):
        try:
            value = check(text, "id")
        except BadInput:
            continue
        assert (Path("/a") / value).resolve().parent == Path("/a")


@pytest.mark.parametrize("value", ["../x", "a/b", "..", "", "a\n", ".hidden", "a..b"])
def test_step_ids_cannot_escape(value: str) -> None:
    with pytest.raises(BadInput):
        RunDir(Path("/run")).marker(value)


def test_home_comes_from_the_environment_or_the_current_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.locate({}).root == tmp_path / ".evpack"
    assert Home.locate({"EVPACK_HOME": "/x/y"}).root == Path("/x/y")


def test_home_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="EVPACK_HOME"):
        Home(tmp_path / "file" / "below").create()


def test_a_user_that_is_not_there_has_no_home() -> None:
    for read in (
        lambda: Home.locate({"EVPACK_HOME": "~no such user/x"}),
        lambda: Settings(output_dir="~no such user/x"),
        lambda: named_model("~no such user/x"),
    ):
        with pytest.raises(BadInput, match="no such user"):
            read()


def test_reports_of_errors_stand_apart() -> None:
    model = RunDir(Path("/r")).model("m")
    assert model.report("nan_injection", "error_injection", 1) == Path("/r/m/reports/errors/nan_injection")
    assert model.report("prune", "stress", 2) == Path("/r/m/reports/prune/run_2")
