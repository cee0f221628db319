"""How steps run, whoever schedules them: processes, slots and threads; and what a run directory says about a campaign."""
