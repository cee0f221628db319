from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from evpack.assets.wheels import Wheel, copy_member, fetch_wheel
from evpack.errors import IntegrityError, StepExit, Transient


def test_a_pinned_wheel_is_fetched_and_a_member_copied(make_wheel: Callable[..., Wheel], tmp_path: Path) -> None:
    pin = make_wheel("poems", "1.0", {"poems/one.txt": b"rose"})
    wheel = fetch_wheel(pin, tmp_path / "got")
    copy_member(wheel, "poems/one.txt", tmp_path / "one.txt")
    assert (tmp_path / "one.txt").read_bytes() == b"rose"


def test_other_bytes_than_the_pinned_ones_are_refused(make_wheel: Callable[..., Wheel], tmp_path: Path) -> None:
    pin = make_wheel("poems", "1.0", {"poems/one.txt": b"rose"})
    changed = make_wheel("poems", "1.0", {"poems/one.txt": b"thorn"})
    with pytest.raises(IntegrityError) as error:
        fetch_wheel(pin, tmp_path / "got")
    assert pin.sha256 in error.value.what
    assert changed.sha256 in error.value.what
    assert "poems==1.0" in error.value.mend


def test_an_unreachable_wheel_gives_one_line_with_pips_reason(index: Path, tmp_path: Path) -> None:
    with pytest.raises(Transient) as error:
        fetch_wheel(Wheel("poems==1.0", "0" * 64), tmp_path / "got")
    assert error.value.what == ("pip could not download poems==1.0: No matching distribution found for poems==1.0")
    assert error.value.exit_code == StepExit.TRANSIENT


@pytest.mark.parametrize("member", ["poems/two.txt", "../poems/one.txt"])
def test_a_member_that_is_not_there_is_refused(make_wheel: Callable[..., Wheel], tmp_path: Path, member: str) -> None:
    wheel = fetch_wheel(make_wheel("poems", "1.0", {"poems/one.txt": b"rose"}), tmp_path / "got")
    with pytest.raises(IntegrityError, match="cannot read the member"):
        copy_member(wheel, member, tmp_path / "out")
