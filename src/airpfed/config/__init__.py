"""The settings: their schema, settings files, grids, keys without effect, and the reference page."""
