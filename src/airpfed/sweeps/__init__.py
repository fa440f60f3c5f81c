"""Sweeps: many runs of one settings file, their execution on several workers, and their common tables and figures."""
