"""The convergence theory: constants, the bounds of one round and of a run, what a plan predicts."""
