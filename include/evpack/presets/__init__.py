"""Presets: what calibration found out about a model, written once and read by every evaluation."""
