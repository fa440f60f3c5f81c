"""Reports: a run's page, figures of runs, link studies and sweeps, and the check of the theory's bounds."""
