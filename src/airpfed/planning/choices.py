"""Which settings a plan compares."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from airpfed.config import settings_file
from airpfed.config.applicability import refuse_ineffective
from airpfed.config.grid import axes_of, grid_points, name_grid_point, overrides_of
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError

VARIED = "radio."
"""What a plan may vary without another probe; ranks at fixed R by splits."""


def choices(
    file: Path, overrides: Sequence[str], base: Settings, grid: Sequence[str], splits: Sequence[str]
) -> list[tuple[dict[str, Any], Settings]]:
    """(what is set, settings) of every candidate: the grid times the splits R_s:R_p; UserError where one is wrong."""
    axes, every = axes_of(grid or default_grid(base)), list[tuple[dict[str, Any], Settings]]()
    for key in (one for axis in axes for one in axis.split("/")):
        if not key.startswith(VARIED):
            raise UserError(f"--grid {key}: a plan varies radio settings; ranks by --split R_S:R_P")
    for point, split in itertools.product(grid_points(axes), splits or default_splits(base)):
        shared, personal = ranks_of(split, base)
        extra = [f"adapters.rank_shared={shared}", f"adapters.rank_personal={personal}"]
        with name_grid_point(point):
            settings = settings_file.read_settings(file, [*overrides, *overrides_of(point), *extra])
            if settings.radio.design == "digital":
                raise UserError('radio.design = "digital": a plan knows no rounding; use a design over the air')
            if settings.radio.clipping_db != "off":
                raise UserError(
                    "radio.clipping_db: a plan needs claimed errors, and clipping leaves none; off is right"
                )
        tree = settings.model_dump(mode="json")
        keys = [change.split("=", 1)[0].split(".") for change in [*overrides_of(point), *extra]]
        every.append(({f"{section}.{key}": tree[section][key] for section, key in keys}, settings))
    refuse_ineffective(str(file), [settings for _, settings in every], training=False)
    return every


def default_grid(base: Settings) -> list[str]:
    """Power (or SNR, where that is set) 10 dB either way, antennas once and twice, both good designs, both accesses."""
    radio = base.radio
    key, middle = ("power_dbm", radio.power_dbm) if radio.snr_db is None else ("snr_db", radio.snr_db)
    return [
        f"radio.{key}={middle - 10:g},{middle:g},{middle + 10:g}",
        f"radio.antennas={radio.antennas},{2 * radio.antennas}",
        "radio.design=uniform_forcing,mmse",
        "radio.access=tdma,concurrent",
    ]


def default_splits(base: Settings) -> list[str]:
    """A quarter, a half and three quarters of R shared, and the settings' own split."""
    shared, total = base.adapters.rank_shared, base.adapters.rank_shared + base.adapters.rank_personal
    if base.adapters.method != "airpfed":
        return [f"{shared}:{total - shared}"]
    return [f"{s}:{total - s}" for s in sorted({shared, *(total * part // 4 for part in (1, 2, 3))})]


def ranks_of(split: str, base: Settings) -> tuple[int, int]:
    """R_s and R_p of `R_S:R_P`, which must add up to the settings' R."""
    total = base.adapters.rank_shared + base.adapters.rank_personal
    try:
        shared, personal = (int(part) for part in split.split(":"))
    except ValueError:
        raise UserError(f"--split {split}: should be R_S:R_P, e.g. --split {total // 2}:{total - total // 2}") from None
    if shared + personal != total or min(shared, personal) < 0:
        raise UserError(f"--split {split}: should add up to R = {total}")
    if base.adapters.method != "airpfed" and shared != base.adapters.rank_shared:
        raise UserError(f'--split {split}: adapters.method = "{base.adapters.method}" has one block, no split')
    return shared, personal
