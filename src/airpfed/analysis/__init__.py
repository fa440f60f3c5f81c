"""Theory beside a run: constants before round 1, and each round checked against its bounds."""
