"""The settings: their tree, how files are read, grids, and which settings have no effect."""
