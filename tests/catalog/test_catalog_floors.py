"""Windows of a run against the floors of tier and profile."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evpack.catalog.floors import with_enough_windows
from evpack.catalog.policy import resolve_policy
from evpack.catalog.suites import settings_for, suites
from evpack.evaluation.assess import assess
from evpack.evaluation.records import ARMS, Compute, WindowLoss, WindowRecords
from evpack.files import sha256_bytes
from evpack.home import Home
from evpack.settings import Settings


def windows(**settings: Any) -> tuple[int, int]:
    raised = with_enough_windows(Settings(**settings))
    return raised.preview_windows, raised.final_windows


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"profile": "ci"}, (240, 240)),  # the profile's own number
        ({"profile": "release", "seq_len": 128}, (400, 400)),
        ({"profile": "ci_cpu", "seq_len": 128}, (197, 197)),  # 50,000 tokens of 2 x 127 each
        ({"profile": "dev", "stride": 512}, (49, 49)),  # coverage does not gate there
        ({"profile": "dev"}, (98, 98)),  # with the default stride 256 of 512 tokens are scored
        ({"profile": "small", "seq_len": 128, "preview_windows": 8}, (16, 32)),
        ({"profile": "small", "seq_len": 128, "preview_windows": 40, "final_windows": 20}, (40, 20)),
        ({"profile": "ci", "preview_windows": 300}, (300, 240)),
        ({"profile": "small", "seq_len": 2, "tier": "conservative"}, (2000, 2000)),
    ],
)
def test_windows_are_raised_to_the_floors(settings: dict[str, Any], expected: tuple[int, int]) -> None:
    assert windows(**settings) == expected


def test_what_is_enough_stays_as_it_is() -> None:
    settings = Settings(profile="small", seq_len=128)
    assert with_enough_windows(settings) is settings


def scored(side: Any, settings: Settings, loss: float) -> WindowRecords:
    counts = {"preview": settings.preview_windows, "final": settings.final_windows}
    places = [(arm, number) for arm in ARMS for number in range(counts[arm])]
    return WindowRecords(
        model="m",
        side=side,
        scenario=None if side == "baseline" else "s",
        run=1,
        seed=42,
        windows_digest="w",
        checkpoint_digest=side,
        compute=Compute(device="cpu", dtype="float32", attention="sdpa", batch=1),
        versions={},
        windows=tuple(
            WindowLoss(
                id=index,
                arm=arm,
                tokens_sha256=sha256_bytes(str(index).encode()),
                predicted_tokens=settings.seq_len - 1,
                nll_sum=(2.0 + number / 100 + loss) * (settings.seq_len - 1),
                reason=None,
            )
            for index, (arm, number) in enumerate(places)
        ),
    )


@given(
    tier=st.sampled_from(get_args(Settings.model_fields["tier"].annotation)),
    profile=st.sampled_from(get_args(Settings.model_fields["profile"].annotation)),
    seq_len=st.sampled_from([64, 128, 512, 2048]),
    windows=st.integers(1, 64),
)
def test_a_healthy_report_can_be_accepted_under_every_tier_and_profile(
    tier: Any, profile: Any, seq_len: int, windows: int
) -> None:
    given = Settings(tier=tier, profile=profile, seq_len=seq_len, preview_windows=windows, final_windows=windows)
    settings = with_enough_windows(given)
    found = assess(scored("subject", settings, 0.001), scored("baseline", settings, 0.0), resolve_policy(tier, profile))
    assert found.validation["primary_metric_acceptable"]


def test_runs_of_the_hub_suites_fit_their_text(tmp_path: Path) -> None:
    """wikitext2's validation split has 217,646 words, hence at least as many tokens; runs share no windows."""
    home = Home(tmp_path)
    for name in suites():
        if name not in ("demo", "fixture"):
            settings = settings_for({"suite": name}, {}, {}, home)
            per_run = (settings.preview_windows + settings.final_windows) * settings.seq_len
            assert (settings.profile, settings.dataset) == ("ci", "wikitext2")
            assert settings.scheduled_runs * per_run < 0.9 * 217_646
