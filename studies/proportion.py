"""A rate with its exact interval."""

from __future__ import annotations

from typing import Any

from evpack.tuning.acceptance import clopper_pearson


def proportion(hits: int, trials: int) -> dict[str, Any]:
    """``{hits, trials, rate, low, high}`` with the 95 % Clopper-Pearson interval; nothing known without trials.

    A rate of 0 or 1 leaves all of the error to one side, so its bound is the one-sided 97.5 % one.
    """
    if trials == 0:
        return {"hits": 0, "trials": 0, "rate": None, "low": 0.0, "high": 1.0}
    low, high = clopper_pearson(hits, trials)
    return {"hits": hits, "trials": trials, "rate": hits / trials, "low": low, "high": high}
