"""Rounds: state, step, the loop, the checkpoint."""
