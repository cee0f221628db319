"""The campaign's DAGs with sham steps in the place of `evpack step` (see `stage`)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evpack.airflow.factory import build_dags
from evpack.runtime import process


class InlineStep:
    """A step in the process of its task: for many tasks whose steps do nothing. Stands for `process.StepProcess`."""

    def __init__(self, command: list[str], environ: Mapping[str, str]) -> None:
        self._arguments = command[2:]

    def run(self, emit: Callable[[str], None]) -> int:
        """Run the step; its exit code."""
        from studies.scheduling.sham_step import step

        return step(self._arguments)

    def terminate(self) -> None:
        """It ends with the task."""


def sham_dags(program: Path, *, inline: bool) -> tuple[Any, Any]:
    """Both DAGs; every step that this process starts from now on is a sham: `program`."""
    real = process.step_command

    def command(*arguments: Any, **named: Any) -> list[str]:
        words = real(*arguments, **named)
        return [sys.executable, str(program), *words[words.index("step") :]]

    process.step_command = command
    if inline:
        process.StepProcess = InlineStep  # type: ignore[assignment,misc]
    return build_dags()
