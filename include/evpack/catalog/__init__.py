"""Suites, scenarios, tiers and tuned parameters: data files and their loaders."""
