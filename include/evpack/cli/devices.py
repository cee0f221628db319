"""`evpack devices`: the accelerators of this host, who holds them, and quarantine."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add `devices` with its sub-commands."""
    group = typer.Typer()
    app.add_typer(group, name="devices")

    @group.callback(invoke_without_command=True)
    def devices(ctx: typer.Context) -> None:
        """The accelerators of this host: lists them when no sub-command is given."""
        if ctx.invoked_subcommand is None:
            list_()

    @group.command("list")
    def list_() -> None:
        """Show every device: memory, who holds it, failures, quarantine."""
        typer.echo("\n".join(lines()))

    @group.command("release")
    def release_(uuid: str = typer.Argument(help="UUID of a mended device.")) -> None:
        """End the quarantine of a device and forget its failures."""
        from evpack.home import Home
        from evpack.runtime.leases import release

        was = release(Home.locate(), uuid)
        reason = f"was quarantined: {was.quarantined}" if was.quarantined else f"had {was.failures} failures"
        typer.echo(f"{uuid} may be used again ({reason})")


def lines() -> list[str]:
    """One line per device that is there or about which something is remembered."""
    from evpack.home import Home
    from evpack.plan.health import health_of
    from evpack.plan.nvml import read_devices
    from evpack.runtime.leases import holder, known_devices

    home = Home.locate()
    there = {device.uuid: device for device in read_devices()}
    found = []
    for uuid in (*there, *(uuid for uuid in known_devices(home) if uuid not in there)):
        device, health, held = there.get(uuid), health_of(home, uuid), holder(home, uuid)
        memory = f"{device.free_gb:.1f} of {device.memory_gb:.1f} GB free" if device else "not on this host now"
        state = "free" if held is None else f"held by {held.get('step', '?')} (process {held.get('pid', '?')})"
        if health.quarantined:
            state = f"quarantined since {health.since}: {health.quarantined}"
        elif device and device.fault:
            state = f"broken: {device.fault}"
        elif health.failures:
            state += f", {health.failures} failures in a row"
        pretended = " (pretended)" if device and device.simulated else ""
        found.append(f"{uuid}{pretended}  {memory}  {state}")
    return found or ["no devices"]
