"""Promised figures, measured: one module per area, one JSON file of rows per area, one generated page."""
