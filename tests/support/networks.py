"""Networks for tests: given mean gains, flat Rayleigh fading."""

from airpfed.testing.links import flat_network as flat

__all__ = ["flat"]
