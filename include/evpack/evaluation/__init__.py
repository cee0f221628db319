"""Paired comparison of a subject with its baseline: records, interval, gates, report."""
