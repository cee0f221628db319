"""HTML for people: self-contained pages without script or network, every value escaped."""
