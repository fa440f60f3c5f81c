"""The theory's modules, as they are or with one planted fault: a line of their source replaced."""

import inspect
import sys
from types import ModuleType, SimpleNamespace

from airpfed.theory import bounds, inner_product, verification

FAULTS = {
    "(40) without beta/2": (
        "bound",
        "return constants.beta / 2 * eta**2 * (power_bound",
        "return eta**2 * (power_bound",
    ),
    "cross term with the bias dropped": ("bound", "gain * gradient - rho * sqrt(gradient * power)", "gradient"),
    "D_n/D for D_k/D_n": ("space", "counts / task[task_of]", "(task / task.sum())[task_of]"),
    "R_s and R_p swapped": (
        "account",
        "groups = [(1.0, mse.s.scale, getattr(mse.s, key))] if mse.s else []\n"
        "    groups += [(shares[name], error.scale, getattr(error, key)) for name, error in mse.p.items()]",
        "first = next(iter(mse.p.values()))\n"
        "    groups = [(1.0, first.scale, getattr(mse.s, key))]\n"
        "    groups += [(shares[name], mse.s.scale, getattr(error, key)) for name, error in mse.p.items()]",
    ),
}
"""Name -> module, what stands there, what the fault makes of it."""


def modules(fault: str = "") -> SimpleNamespace:
    """The modules by name; with `fault` one of them is rebuilt from its source with that one change."""
    found = {"bound": bounds, "space": inner_product, "account": verification}
    if fault:
        name, right, wrong = FAULTS[fault]
        source = inspect.getsource(found[name])
        assert source.count(right) == 1, f"{fault}: {name}.py does not say it once"
        broken = ModuleType(f"broken_{name}")
        sys.modules[broken.__name__] = broken  # dataclasses look their module up
        exec(compile(source.replace(right, wrong), f"<{fault}>", "exec"), broken.__dict__)
        found[name] = broken
    return SimpleNamespace(**found)
