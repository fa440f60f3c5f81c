"""The ground that everything stands on: errors, units, random numbers, files, memory, records of a run."""
