"""An experiment from settings to results: built, run, written to its folder."""
