"""`evpack doctor`: whether this deployment is what it should be, and how to mend it where it is not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from evpack.errors import EvpackError

if TYPE_CHECKING:
    from evpack.airflow.config import Deployment
    from evpack.home import Home

SETUP = "run `evpack airflow setup`"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    text: str
    mend: str | None = None
    """How to mend it; None when nothing is wrong."""


def register(app: typer.Typer) -> None:
    """Add `doctor`."""

    @app.command()
    def doctor() -> None:
        """Compare pools and configuration with this host and with what is running. Exit 0 when all is well, else 1."""
        from evpack.home import Home

        findings = list(examine(Home.locate()))
        for finding in findings:
            typer.echo(f"ok     {finding.text}" if finding.mend is None else f"WRONG  {finding.text}")
            if finding.mend is not None:
                typer.echo(f"       mend: {finding.mend}")
        raise typer.Exit(int(any(finding.mend is not None for finding in findings)))


def examine(home: Home) -> Iterator[Finding]:
    """Everything that is looked at, from the home to the running Airflow."""
    from evpack.airflow.config import Deployment

    for look in (_home, _devices, _pools, _containers):
        try:
            yield from look(home)
        except EvpackError as error:
            yield Finding(error.what, error.mend or "see the message")
    try:
        deployment = Deployment.locate(home)
        if os.environ.get("AIRFLOW_HOME", str(deployment.root)) != str(deployment.root):
            yield from _own_airflow(home)
            return
        yield from _configuration(deployment)
        yield from _running(deployment)
    except EvpackError as error:
        yield Finding(error.what, error.mend or "see the message")


def _home(home: Home) -> Iterator[Finding]:
    from evpack.plan.disk import check_writable, free_gb

    check_writable(home.root)
    yield Finding(f"EVPACK_HOME {home.root} can be written, {free_gb(home.root):.0f} GB are free")


def _devices(home: Home) -> Iterator[Finding]:
    from evpack.plan.health import health_of
    from evpack.plan.hosts import HOSTS_ENV, chosen_hosts
    from evpack.plan.nvml import SIMULATED_ENV, read_devices

    devices = read_devices()
    pretended = f", pretended by {SIMULATED_ENV}" if any(device.simulated for device in devices) else ""
    yield Finding(f"{len(devices)} devices{pretended}")
    for device in devices:
        why = health_of(home, device.uuid).quarantined or device.fault
        if why:
            mend = f"mend the device, then `evpack devices release {device.uuid}`"
            yield Finding(f"device {device.uuid} serves no step: {why}", mend)
    here = socket.gethostname().partition(".")[0]
    hosts = {host.name: host for host in chosen_hosts()}
    if hosts and here not in hosts:
        yield Finding(f"{HOSTS_ENV} lists {', '.join(hosts)}, not this host ({here}): no step is planned for it")
    if host := hosts.get(here):
        smallest = min((device.memory_gb for device in devices), default=0.0)
        listed = f"{HOSTS_ENV} gives this host {host.devices} devices of {host.memory_gb:g} GB"
        fits = host.devices <= len(devices) and host.memory_gb <= smallest
        yield Finding(listed, None if fits else f"it has {len(devices)}, of {smallest:g} GB at least: list it so")


def _pools(home: Home) -> Iterator[Finding]:
    from evpack.runtime.pools import made_pools, pool_slots

    if not home.pools.is_file():
        yield Finding("no pools were made yet", SETUP)
        return
    made, now = made_pools(home), pool_slots()
    if made == now:
        yield Finding(f"the pools fit this host: {_listed(made)}")
    else:
        yield Finding(f"the pools were made for other devices or settings: {_listed(made)}; now {_listed(now)}", SETUP)


def _containers(home: Home) -> Iterator[Finding]:
    """Where steps run in containers: what nobody looks after is removed, then a token goes through one."""
    from evpack.runtime.choice import DOCKER, chosen_runtime

    if chosen_runtime() != DOCKER:
        return
    from evpack.runtime.docker_engine import connect, reap
    from evpack.runtime.docker_probe import probe
    from evpack.runtime.docker_spec import ContainerLimits

    client = connect()
    for line in reap(client, home):
        yield Finding(f"removed {line}: nobody looked after it")
    yield Finding(probe(client, ContainerLimits.of(os.environ), home))


def _configuration(deployment: Deployment) -> Iterator[Finding]:
    from evpack.runtime.pools import made_pools

    if not deployment.config_file.is_file():
        yield Finding(f"no Airflow was set up in {deployment.root}", SETUP)
        return
    different = deployment.differences(sum(made_pools(deployment.home).values()))
    for line in different:
        yield Finding(line, f"take it back, or remove {deployment.config_file} and {SETUP.removeprefix('run ')}")
    if not different:
        yield Finding(f"{deployment.config_file} is as documented")


def _running(deployment: Deployment) -> Iterator[Finding]:
    """The pools of the Airflow that runs now, over its REST API."""
    from evpack.airflow.client import Client
    from evpack.airflow.embedded import endpoint_of
    from evpack.runtime.pools import made_pools, pool_drift

    endpoint = endpoint_of(deployment)
    if endpoint is None:
        yield Finding("no Airflow runs on this home")
        return
    with Client(endpoint) as client:
        if client.health().get("scheduler") != "healthy":
            yield Finding(f"the scheduler of {endpoint.url} is not healthy", f"see {deployment.logs}/scheduler.log")
            return
        drift = pool_drift(made_pools(deployment.home), client.pools())
    for line in drift.values():
        yield Finding(f"{endpoint.url}: {line}", SETUP)
    if not drift:
        yield Finding(f"{endpoint.url} runs with these pools")


def _own_airflow(home: Home) -> Iterator[Finding]:
    """The Airflow that AIRFLOW_HOME names: what campaigns need of it, as it is in force there."""
    from evpack.airflow.config import CAMPAIGN_DAG, HOOK, WEIGHT_RULE, Deployment
    from evpack.runtime.pools import made_pools, pool_drift

    place = os.environ["AIRFLOW_HOME"]
    command = [sys.executable, "-m", "evpack.airflow.prepare", "--tell"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr.strip() or "no word").splitlines()[-1]
        yield Finding(f"the Airflow of AIRFLOW_HOME={place} cannot be asked: {said}", SETUP)
        return
    told, made = json.loads(done.stdout.splitlines()[-1]), made_pools(home)
    wrong = [Finding(f"{place}: {line}", SETUP) for line in pool_drift(made, told["pools"]).values()]
    for (section, option), least in Deployment.needed(sum(made.values())).items():
        if int(told["options"][f"{section}.{option}"]) < least:
            text = (
                f"{place}: [{section}] {option} is {told['options'][f'{section}.{option}']}, at least {least} is needed"
            )
            wrong.append(Finding(text, f"set it to {least}"))
    if not told["weights"]:
        wrong.append(
            Finding(f"{place}: no plugin gives {WEIGHT_RULE}", "let plugins_folder name this project's plugins/")
        )
    if not told["order"]:
        text = f"{place}: every run is small_first across lanes, whatever PACK_ORDER says"
        wrong.append(Finding(text, f"put `{HOOK}` into config/airflow_local_settings.py there"))
    if CAMPAIGN_DAG not in told["dags"]:
        wrong.append(
            Finding(f"{place}: no DAG {CAMPAIGN_DAG}", f"let dags_folder name this project's dags/, then {SETUP}")
        )
    yield from wrong or [Finding(f"the Airflow of AIRFLOW_HOME={place} has what campaigns need")]


def _listed(pools: dict[str, int]) -> str:
    return ", ".join(f"{name} {slots}" for name, slots in sorted(pools.items()))
