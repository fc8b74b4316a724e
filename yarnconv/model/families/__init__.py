"""One data file per family."""
