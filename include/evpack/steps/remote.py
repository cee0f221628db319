"""A step's work where its books are not: in a container that can write what the step publishes and nothing else.

`work_alone` runs in there and leaves one result file. Needs, markers, archive, attempt record and log stay with
`steps.runner` outside, which hashes what was published.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evpack.data.sources import source_from
from evpack.errors import BadInput, EvidenceError, StepExit
from evpack.files import read_json, write_json
from evpack.home import Home
from evpack.pack.provenance import BAKED, SOURCE_ENV, check_source_repo
from evpack.plan.model import load_plan
from evpack.plan.sources import fetch_snapshot
from evpack.rundir import RunDir, checked_id
from evpack.settings import Settings
from evpack.steps.base import Leased, LeaseDevices, StepContext
from evpack.steps.runner import attempted, work_here
from evpack.steps.state import peak_rss_bytes
from evpack.steps.subject import model_of

RESULT_SCHEMA = "evpack_step_result_v1"
RESULT_FILE = "result.json"
_LONGEST_ERROR = 4000
"""Characters of an error's text that go into records."""


@dataclass(frozen=True)
class Result:
    """What a step's work came to."""

    published: tuple[str, ...] = ()
    """Files and directories, relative to the run directory."""
    error: str | None = None
    leased: Leased | None = None
    peak_rss_bytes: int = 0

    @classmethod
    def read(cls, path: Path, step: str) -> Result:
        """The result file of a step.

        Raises:
            FileNotFoundError: when the work ended before it could leave one.
            EvidenceError: when it is malformed or another step's.
        """
        value = read_json(path)
        try:
            if (value["schema"], value["step"]) != (RESULT_SCHEMA, step):
                raise EvidenceError(f"{path} is no result of step {step}")
            return cls(
                published=tuple(str(name) for name in value["published"]),
                error=None if value["error"] is None else str(value["error"])[:_LONGEST_ERROR],
                leased=None if value["leased"] is None else _leased(value["leased"]),
                peak_rss_bytes=int(value["peak_rss_bytes"]),
            )
        except (KeyError, TypeError, ValueError, BadInput) as error:
            raise EvidenceError(f"{path} is no result of a step: {error!r}") from error


def _leased(value: dict[str, Any]) -> Leased:
    devices, simulated, waited = value["devices"], value["simulated"], value["waited_s"]
    if not (isinstance(devices, list) and type(simulated) is bool and type(waited) in (int, float) and waited >= 0):
        raise ValueError("what it leased is none")
    return Leased(tuple(checked_id(device, "device UUID") for device in devices), simulated, float(waited))


def work_alone(
    run_dir: Path, step_id: str, *, attempt: int, batch: int | None, outbox: Path, lease: LeaseDevices | None
) -> StepExit:
    """Do a step's work and leave its result in `outbox`; the exit code is classified as by the runner.

    There is no network here, whatever the campaign may use: what needs it was fetched before (`fetch`).

    Args:
        batch: windows per forward pass when earlier attempts ran out of memory, else None.

    Raises:
        BadInput: when the directory holds no plan or the plan has no such step.
    """
    run = RunDir(run_dir.absolute())
    plan = load_plan(run)
    step = plan.step(step_id)
    settings = Settings.parse(run.settings.read_bytes()).model_copy(update={"net": False})
    ctx = StepContext(run, plan, settings, step, Home.locate(), attempt, batch)
    leased: list[Leased] = []
    published: list[Path] = []

    def leave(error: str | None) -> None:
        value = {
            "schema": RESULT_SCHEMA,
            "step": step_id,
            "published": _names(published, run),
            "error": error,
            "leased": asdict(leased[-1]) if leased else None,
            "peak_rss_bytes": peak_rss_bytes(),
        }
        write_json(outbox / RESULT_FILE, value)

    def hold(devices: Leased) -> None:
        leased.append(devices)
        leave(None)  # should the process crash, this tells which devices it had

    def work() -> None:
        need_same_code(run, BAKED)
        published.extend(work_here(ctx, hold, lease, own_process=True))

    exit_, error = attempted(work, step, own_process=True)
    leave(error)
    return exit_


def fetch(ctx: StepContext) -> tuple[Path, ...]:
    """Bring what setup_baseline takes from the network into the deployment's caches.

    Returns:
        The files of the evaluation text.

    Raises:
        EvpackError: as setup_baseline itself.
    """
    model, _ = model_of(ctx)
    if model.source.kind == "hub":
        fetch_snapshot(model.id, model.source.revision or "", ctx.settings, ctx.home)
    return source_from(ctx.settings, ctx.home).files


def need_same_code(run: RunDir, baked: Path) -> None:
    """What is computed here counts as computed by the code that planned the campaign, so it has to be that code.

    Args:
        baked: provenance built into the package (`pack.provenance.BAKED`).

    Raises:
        BadInput: when it is not there, names another commit, or names changes to it that the plan does not.
    """
    if not baked.is_file():
        raise BadInput(
            "this image does not say of which commit its evpack is",
            f"build it in a git checkout (`make worker-image`), or with {SOURCE_ENV} set",
        )
    here = check_source_repo(baked.read_bytes(), baked.name)
    planned = check_source_repo(run.source_repo.read_bytes(), str(run.source_repo))
    if here["commit"] != planned["commit"] or (here["dirty"] and not planned["dirty"]):
        raise BadInput(
            f"this image holds evpack at commit {_named(here)}, the campaign was planned by {_named(planned)}",
            "build the worker image from the code that plans (`make worker-image`) and name it",
        )


def _named(source: dict[str, Any]) -> str:
    return f"{source['commit']} with changes" if source["dirty"] else str(source["commit"])


def _names(paths: Iterable[Path], run: RunDir) -> list[str]:
    return [path.relative_to(run.root).as_posix() for path in paths]
