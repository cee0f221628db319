"""Disk pressure: below MIN_FREE_DISK_GB no step begins its work (scheduling spec, section 9)."""

from __future__ import annotations

from evpack.errors import DiskFull
from evpack.files import utc_now, write_json
from evpack.plan.disk import free_gb
from evpack.rundir import RunDir
from evpack.settings import Settings


def check_pressure(run: RunDir, settings: Settings) -> None:
    """Refuse to begin where too little is free, and leave state/disk_pressure.json; it goes when there is room again.

    Raises:
        DiskFull: naming what is free. Every further step says the same, so the campaign ends without half a result.
    """
    if settings.skip_disk_preflight:
        return
    free = free_gb(run.root)
    if free >= settings.min_free_disk_gb:
        run.disk_pressure.unlink(missing_ok=True)
        return
    write_json(
        run.disk_pressure,
        {
            "detected_at": utc_now(),
            "free_gb": round(free, 3),
            "min_free_gb": settings.min_free_disk_gb,
            "output_dir": str(run.root),
        },
    )
    raise DiskFull(
        f"{free:.1f} GB are free at {run.root}, less than MIN_FREE_DISK_GB={settings.min_free_disk_gb:g}",
        f"make room, then `evpack campaign resume {run.root}`",
    )
