"""The API's link study: designs over a grid of the radio's settings, as a data frame."""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airpfed.air.designs import DESIGNS, Design
from airpfed.air.problem import Transceiver
from airpfed.config.applicability import refuse_ineffective
from airpfed.config.choice import Choice
from airpfed.config.grid import MAX_POINTS, check_count
from airpfed.config.schema import RadioSettings, Settings
from airpfed.config.settings_file import read_settings
from airpfed.core.errors import UserError, hint
from airpfed.planning.cells import Number, RadioNetwork, change_radio, plain_value
from airpfed.planning.link_study import (
    COLUMNS,
    KEYS_READ,
    check_correlation,
    check_link_settings,
    columns_of,
    compare_designs,
    parse_design,
)

if TYPE_CHECKING:
    import pandas as pd

DesignLike = str | Choice | Design | Callable[..., Transceiver]
"""A label such as "mmse" or "mmse(starts=4)", a row, or a function (problem, *, options) -> Transceiver."""

FRAME_COLUMNS = {
    "nmse_db": "pi_db", "nmse_db_se": "pi_db_se", "nmse_s_db": "s_db", "nmse_s_db_se": "s_db_se", "nmse_p_db": "p_db",
    "nmse_p_db_se": "p_db_se", "claimed_db": "claimed_db",
} | {key: key for key in COLUMNS if not key.endswith(("_db", "_db_se"))}  # fmt: skip
"""Column of the frame -> column of link.csv."""


def link_study(
    designs: Mapping[str, DesignLike] | Iterable[DesignLike] | DesignLike | None,
    network: RadioNetwork | Settings | str | Path,
    *,
    draws: int = 20,
    snr_db: Number | Iterable[Number] | None = None,
    correlation: Number = 0.0,
    gap: bool = True,
    **grid: Any,
) -> "pd.DataFrame":
    """Compare designs over the same channels, at every point of a grid; what `airpfed link` does.

    designs: {label: design}, several designs, or one; None for all of DESIGNS. A design is a function (problem, *,
    options) -> Transceiver, a row, or a label such as "mmse(starts=4)". network: a network, settings, or a settings
    file. draws: drops, each with channels, symbols and noise of its own; they are the same for all designs.
    snr_db, grid: keys of the section [radio], such as antennas=[4, 16], each with a value or several. correlation:
    of the devices' symbols. gap: whether to compute the lower bound, which takes most of the time.

    Returns a row for each point of the grid and each design, with the columns

    - design, and a column for each key of the grid
    - nmse_db: Pi, the error of all sums over the error of silence, mean over the draws of decibels; nmse_s_db and
      nmse_p_db: of the s-sum and the p-sums, NaN without one; nmse_db_se, ...: standard errors, NaN for one draw
    - claimed, measured: linear Pi that the receivers claim, and that symbols and noise measure; claimed_db
    - bias: the part of Pi that is bias
    - gap: Pi over the lower bound of every transceiver, minus 1, NaN where none is known or computed
    - iterations; ms: milliseconds of design a draw; uses: channel uses of a round

    Random: drops, fading, symbols and noise, fixed by the network's seed. Raises UserError for a key or value that is
    wrong or has no effect, and, naming the design, for a function that cannot be one, or whose result has a wrong type
    or shape, is not finite, or exceeds a device's power.

    >>> import airpfed as ap
    >>> network = ap.single_cell(devices=[4, 4], antennas=8)
    >>> table = ap.link_study(["mmse", "channel_inversion"], network, snr_db=[0, 20], draws=5)
    >>> table[["design", "snr_db", "nmse_db"]].round(0)
                  design  snr_db  nmse_db
    0               mmse       0    -10.0
    1  channel_inversion       0     -4.0
    2               mmse      20    -29.0
    3  channel_inversion      20    -23.0
    """
    import pandas as pd

    check_count("draws", draws)
    check_correlation("correlation", correlation)
    choices = design_choices(designs)
    settings, samples = settings_of(network)
    axes = {"snr_db": snr_db, **grid} if snr_db is not None else grid
    points = grid_of_values(axes)
    flat = isinstance(network, RadioNetwork)
    every_settings = [change_radio(settings, "link_study", point, flat) for point in points]
    refuse_ineffective("link_study", every_settings, training=False)
    rows = []
    for point, at_point in zip(points, every_settings, strict=True):
        labels = {key: _label(getattr(at_point.radio, key), value) for key, value in point.items()}
        for design, result in compare_designs(at_point, draws, correlation, choices, samples, gap).items():
            values = columns_of(result)
            numbers = {key: math.nan if (v := values[name]) is None else v for key, name in FRAME_COLUMNS.items()}
            rows.append({"design": design, **labels, **numbers})
    return pd.DataFrame(rows)


def design_choices(designs: Any) -> dict[str, Any]:
    """Map labels to designs that are checked. A label of a bare name stays text, so that settings may set its options.

    Raises UserError if a label stands twice, or if something is no design.
    """
    if designs is None:
        designs = tuple(DESIGNS)
    if isinstance(designs, (str, Choice, Design)) or not isinstance(designs, Iterable):
        designs = [designs]
    if not isinstance(designs, Mapping):
        choices = [parse_design("designs", value) for value in designs]
        labels = [choice.label for choice in choices]
        if twice := [label for label in labels if labels.count(label) > 1]:
            raise UserError(f"designs: {twice[0]} stands twice; give {{label: design}}")
        designs = dict(zip(labels, designs, strict=True))
    if not designs:
        raise UserError("designs: none given; should be at least one, or None for all")
    return {
        str(label): value if isinstance(value, str) else parse_design(f"design {label}", value)
        for label, value in designs.items()
        if parse_design(f"design {label}", value)
    }


def settings_of(network: RadioNetwork | Settings | str | Path) -> tuple[Settings, tuple[float, ...] | None]:
    """Return the settings of a study, and D_k if the network was given it for every device."""
    if isinstance(network, RadioNetwork):
        return network.settings, network.samples
    if not isinstance(network, (Settings, str, Path)):
        raise UserError(
            f"link_study: network is {type(network).__name__}; should be a network, such as ap.single_cell(), settings "
            "or a settings file"
        )
    settings = network if isinstance(network, Settings) else read_settings(Path(network))
    check_link_settings(settings)
    return settings, None


def grid_of_values(axes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the points of a grid, the last key fastest. Raises UserError for keys that do not change the link."""
    right = sorted(KEYS_READ["radio"])
    for key in axes:
        if key in ("design", "drop", "scheme") or key not in RadioSettings.model_fields:
            raise UserError(f"link_study: {key} does not change the link; should be a key of [radio]{hint(key, right)}")
    values = {key: [plain_value(item) for item in _several(value)] for key, value in axes.items()}
    for key, items in values.items():
        if not items:
            raise UserError(f"link_study: {key} has no values")
    if (count := math.prod(len(items) for items in values.values())) > MAX_POINTS:
        raise UserError(f"link_study: {count} combinations of {', '.join(values)}; should be at most {MAX_POINTS}")
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def _several(value: Any) -> list[Any]:
    """Return the values of an axis. A text, a table, and a pair (name, options) are one value."""
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping)
    if pair or isinstance(value, (str, Mapping)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        return [value]
    return list(value)


def _label(setting: Any, value: Any) -> Any:
    """Return what a column holds for a setting: the label of a choice, or the number as the user wrote it."""
    return setting.label if isinstance(setting, Choice) else value
