"""Plain alternating optimisation, the literature's habit, kept as a baseline."""

from airpfed.air.designs.alternation import alternate, devices, singular_start
from airpfed.air.designs.unit import normalise, restore
from airpfed.air.slot import Slot, Transceiver


def naive_ao(slot: Slot, steps: int = 200) -> Transceiver:
    """`steps` alternations of closed-form devices and MMSE receivers from each target's dominant singular vector.

    Neither continuation nor acceleration: from about 10 dB on it stops dBs above `mmse`.
    """
    unit = normalise(slot)
    m = alternate(unit, singular_start(unit), steps)
    return restore(unit, m, devices(unit, m), steps)
