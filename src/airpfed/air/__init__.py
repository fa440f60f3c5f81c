"""The air: geometry, fading, transceiver designs, the over-the-air sum, the ledger."""
