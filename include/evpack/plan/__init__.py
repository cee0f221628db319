"""What a campaign will do: models, lanes, steps and their needs, decided once and frozen in state/plan.json."""
