"""Channels: one function shape, (seed, round, blocks) -> channels, whatever the model behind it."""
