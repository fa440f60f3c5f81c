"""Devices: mini-batches, stacked gradients, answers, compression, and full-data gradients for the theory."""
