"""The command line: one module per sub-command, each with `register(app)`; heavy imports inside the commands."""
