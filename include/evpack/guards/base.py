"""What every guard reads and gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal["pass", "warn", "fail", "error"]
Phase = Literal["pre", "post"]
Severity = Literal["warning", "fatal", "error"]


@dataclass(frozen=True)
class Violation:
    """One finding of a guard."""

    type: str
    severity: Severity
    message: str
    tensors: tuple[str, ...] = ()
    """The tensors concerned, at most `MAX_NAMED`; `count` has their number."""
    count: int = 1

    def to_json(self) -> dict[str, Any]:
        """The entry of `failures[]`."""
        return {
            "type": self.type,
            "severity": self.severity,
            "message": self.message,
            "tensors": list(self.tensors),
            "count": self.count,
        }


GUARD_ERROR = "guard_error"
"""Type of the finding that a guard could not run."""
MAX_NAMED = 20
"""Tensors named in one finding; a report is read by people."""


def about(type_: str, severity: Severity, message: str, tensors: list[str]) -> Violation:
    """A finding about tensors, naming the first of them."""
    return Violation(type_, severity, message, tuple(tensors[:MAX_NAMED]), len(tensors))


@dataclass(frozen=True)
class GuardResult:
    """One run of one guard."""

    name: str
    phase: Phase
    violations: tuple[Violation, ...] = ()
    """Findings that decide the status."""
    apart: tuple[Violation, ...] = ()
    """Findings that are listed but decide nothing."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        """Error or fail when any finding is an error or fatal, warn when there are others, else pass."""
        severities = {violation.severity for violation in self.violations}
        if "error" in severities:
            return "error"
        if "fatal" in severities:
            return "fail"
        return "warn" if severities else "pass"

    @property
    def passed(self) -> bool:
        """False when the guard failed or could not run."""
        return self.status in ("pass", "warn")

    @property
    def action(self) -> str:
        """The reference's word for what follows: none, warn or abort."""
        return {"pass": "none", "warn": "warn"}.get(self.status, "abort")

    def to_json(self) -> dict[str, Any]:
        """The entry as a report carries it."""
        return {
            "name": self.name,
            "phase": self.phase,
            "status": self.status,
            "passed": self.passed,
            "action": self.action,
            "metrics": dict(self.metrics),
            "violations": [violation.to_json() for violation in self.violations],
        }
