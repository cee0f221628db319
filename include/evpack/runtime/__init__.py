"""How steps run, whoever schedules them: processes, slots, threads; and what a run directory says of a campaign."""
