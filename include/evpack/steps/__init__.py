"""The steps of a campaign: idempotent functions from files to files."""
