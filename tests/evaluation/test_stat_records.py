from __future__ import annotations

import copy
import json

import pytest

from evpack.errors import EvidenceError
from evpack.evaluation.records import WindowRecords
from evpack.files import canonical_json


def test_records_survive_a_round_trip(raw) -> None:
    document = raw([3.0, None, 3.5, 2.0])
    assert WindowRecords.parse(canonical_json(document), "r").to_json() == document


def test_arms_keep_the_schedule_order(records) -> None:
    assert [w.id for w in records([1.0] * 6).arm("final")] == [3, 4, 5]


def _set(document, path, value):
    changed = copy.deepcopy(document)
    *parents, last = path
    node = changed
    for key in parents:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("schema",), "other", "schema"),
        (("windows",), [], "windows"),
        (("windows",), {}, "windows"),
        (("windows", 0, "nll_sum"), None, "reason"),
        (("windows", 0, "reason"), "why", "reason"),
        (("windows", 0, "nll_sum"), "3", "nll_sum"),
        (("windows", 0, "nll_sum"), -0.1, "nll_sum"),
        (("windows", 0, "nll_sum"), 1e300, "nll_sum"),
        (("windows", 0, "nll_sum"), True, "nll_sum"),
        (("windows", 0, "predicted_tokens"), 0, "predicted_tokens"),
        (("windows", 0, "predicted_tokens"), 12.5, "predicted_tokens"),
        (("windows", 0, "predicted_tokens"), 10**30, "predicted_tokens"),
        (("windows", 0, "arm"), "middle", "arm"),
        (("windows", 0, "id"), -1, "id"),
        (("windows", 0, "id"), 1, "preview:1 stands twice"),
        (("windows", 0, "tokens_sha256"), "xyz", "tokens_sha256"),
        (("windows", 0, "extra"), 1, "extra"),
        (("compute", "batch"), 0, "batch"),
        (("compute", "device"), ..., "device"),
        (("seed",), "42", "seed"),
    ],
)
def test_malformed_records_are_refused_with_the_place(raw, path, value, named) -> None:
    with pytest.raises(EvidenceError, match=named):
        WindowRecords.parse(canonical_json(_set(raw([3.0] * 4), path, value)), "r")


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"null", b"3", b'{"schema": NaN}', b"\xff", b'{"a":1,"a":2}', b"[" * 9000]
)
def test_bytes_that_are_no_records_are_refused(data) -> None:
    with pytest.raises(EvidenceError):
        WindowRecords.parse(data, "r")


def test_a_huge_integer_loss_is_refused_without_a_crash(raw) -> None:
    text = json.dumps(raw([3.0] * 4)).replace("381.0", "1" + "0" * 400, 1)
    with pytest.raises(EvidenceError):
        WindowRecords.parse(text.encode(), "r")
