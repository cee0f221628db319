"""docs/tuning.md says what the model says, and covers the reference's variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from evpack.settings import variables
from evpack.settings_docs import tuning_page
from evpack.settings_gone import GONE
from evpack.steps.plan import warn_idle

ROOT = Path(__file__).parents[2]
REFERENCE = Path(__file__).with_name("reference_variables.txt").read_text().split()


def test_page_is_current() -> None:
    assert (ROOT / "docs" / "tuning.md").read_text() == tuning_page(), "run `evpack settings docs > docs/tuning.md`"


def test_every_variable_of_the_reference_is_a_setting() -> None:
    known = {name for _, var, _ in variables() for name in var.names}
    assert len(REFERENCE) > 70 and set(REFERENCE) <= known


def test_every_variable_is_on_the_page() -> None:
    page = tuning_page()
    assert [name for name in REFERENCE if f"`{name}`" not in page] == []


def test_no_variable_sets_two_settings() -> None:
    names = [name for _, var, _ in variables() for name in var.names]
    assert len(names) == len(set(names))


def test_fields_are_named_after_their_variables() -> None:
    for field, var, _ in variables():
        if field in ("task_timeouts", "resume_mode", "build_pack"):
            continue
        stems = {name.removeprefix("PACK_").removeprefix("INVARLOCK_").lower() for name in var.names}
        assert field in stems | {f"pack_{stem}" for stem in stems}, field


def test_what_is_no_setting_any_more_has_a_successor(caplog: pytest.LogCaptureFixture) -> None:
    known = {name for _, var, _ in variables() for name in var.names}
    gone = [name for names in GONE for name in names.split(", ")]
    assert known.isdisjoint(gone)
    assert [name for name in gone if f"`{name}`" not in tuning_page()] == []
    warn_idle({}, {"INVARLOCK_CERT_MIN_WINDOWS": "1"})
    assert "no effect; in its place: the floors of PACK_PROFILE" in caplog.text


def test_a_setting_without_effect_says_so_when_it_is_given(caplog: pytest.LogCaptureFixture) -> None:
    warn_idle(
        {"transformers_cache": "/c", "seq_len": 128, "PACK_NO_SETTING": 1},
        {"WORKER_TIMEOUT": "9", "GPU_RESERVATION_TTL": ""},
    )
    assert [record.getMessage() for record in caplog.records] == [
        "warning: WORKER_TIMEOUT has no effect; Airflow: [scheduler] task_instance_heartbeat_timeout",
        "warning: transformers_cache has no effect; Older name of a cache directory.",
    ]
