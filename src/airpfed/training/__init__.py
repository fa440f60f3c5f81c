"""Federated training: the state of a run, one round, the loop, checkpoints and scores."""
