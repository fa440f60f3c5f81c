"""Devices: the gradients of many devices in one stacked pass."""
