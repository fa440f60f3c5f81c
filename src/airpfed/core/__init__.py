"""Errors, units, random numbers, paths, files and locks, memory, wheels, and the schema of everything a run writes."""
