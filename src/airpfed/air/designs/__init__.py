"""Transceiver designs, one file each, batched over coherence blocks."""
