"""Every edit on small matrices whose answers were worked out by hand (the cases say how)."""

import json
from pathlib import Path

import pytest
import torch  # noqa: TID253

from evpack.catalog.edit_spec import EDIT_TYPES, parse_edit_spec, resolve_edit
from evpack.edits import kernel_for

GOLDEN = Path(__file__).parent / "golden"


def cases():
    for path in sorted(GOLDEN.glob("*.json")):
        for case in json.loads(path.read_text()):
            yield pytest.param(path.stem, case, id=f"{path.stem}: {case['case']}")


def test_every_edit_has_answers():
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(EDIT_TYPES)


@pytest.mark.parametrize(("edit_type", "case"), cases())
def test_answer_worked_out_by_hand(edit_type, case):
    edit = resolve_edit(parse_edit_spec(case["spec"]), case.get("tuned"))
    assert edit.edit_type == edit_type
    dtype = getattr(torch, case["dtype"])
    kernel = kernel_for(edit_type)(edit)
    weight = torch.tensor(case["weight"], dtype=dtype)
    assert weight.tolist() == case["weight"] or dtype is torch.float32, "the case is exact in its type"
    result = kernel.apply(weight)
    assert result.dtype == dtype
    expected = torch.tensor(case["expected"], dtype=dtype)
    torch.testing.assert_close(result, expected, rtol=0, atol=case.get("tolerance", 0.0))
    metadata = kernel.metadata(1)
    for key, value in case["metadata"].items():
        assert metadata[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value)
