"""Theory beside a run: constants before round 1, and every round checked against its bound."""
