"""From a plan and the reports it asked for to one verdict. Pure: reads no file, no clock, no task state."""
