"""Several channels of one round at once: what each of them gives alone."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from airpfed.air.impairments import Impairments
from airpfed.air.schedule import Updates
from airpfed.air.uplink import initial_statistics, uplink, uplink_over_seeds
from support.uplinks import everyone, gradients, make_air

MIXED = {"mixing": "full", "power_over": "symbol", "subcarriers": 8}
"""Every seed mixes anew, so that the largest symbols, and with them the limits of the design, differ."""

CASES = {
    "tdma": ("uniform_forcing", {}),
    "concurrent, mmse, wrong estimates": ("mmse", {"access": "concurrent", "csi_error": 0.05, "antennas": 16}),
    "superposed": ("mmse", {"access": "superposed"}),
    "auto": ("mmse", {"access": "auto", "personal_slots": 2}),
    "error-free": ("error_free", {}),
    "mixed": ("uniform_forcing", MIXED),
    "mixed, mmse, wrong estimates": ("mmse", MIXED | {"csi_error": 0.05}),
    "mixed, mmse, ADC": ("mmse", MIXED | {"impairments": Impairments(adc_noise=0.03), "csi_error": 0.05}),
    "mixed, concurrent, mmse": ("mmse", MIXED | {"access": "concurrent", "csi_error": 0.05, "antennas": 16}),
    "mixed, superposed": ("mmse", MIXED | {"access": "superposed"}),
}
SEEDS = (5, 2**61 + 1, 7)


@pytest.mark.parametrize("case", CASES)
def test_draws_are_those_of_the_link_with_other_seeds(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums to float32 rounding, errors and cost; one draw is not another. Designs take few steps, the same ones."""
    for steps in ("widely_linear.STEPS", "least_error.STEPS"):
        monkeypatch.setattr(f"airpfed.air.designs.{steps}", 8)
    design, changes = CASES[case]
    link = make_air(design, **changes)
    shared, personal = gradients(link)
    given = 3, Updates(shared, personal, everyone(link)), initial_statistics(link)
    found = uplink_over_seeds(link, SEEDS, *given)
    for seed, one in zip(SEEDS, found, strict=True):
        alone = uplink(replace(link, seed=seed), *given)
        torch.testing.assert_close(one.shared, alone.shared, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.personal, alone.personal, rtol=1e-5, atol=1e-6)
        assert one.pi == pytest.approx(alone.pi, rel=1e-6) and one.pi_claimed == pytest.approx(
            alone.pi_claimed, rel=1e-6
        )
        assert one.ledger.channel_uses == alone.ledger.channel_uses
        assert one.ledger.joules_mean == pytest.approx(alone.ledger.joules_mean, rel=1e-6)
    if design != "error_free":
        assert not torch.equal(found[0].shared, found[1].shared)


@pytest.mark.parametrize(("changes", "batched"), [({}, False), (MIXED, True)])
def test_transceivers_of_all_draws_are_designed_in_one_call(changes: dict[str, Any], batched: bool) -> None:
    """As many designs as one round has, each for the channels of every draw."""
    link = make_air("mmse", csi_error=0.05, **changes)
    blocks: list[int] = []
    real = link.design
    assert real is not None

    def counted(problem):  # type: ignore[no-untyped-def]
        blocks.append(len(problem.h))
        return real(problem)

    watched = replace(link, design=counted, batched=batched)
    shared, personal = gradients(link)
    given = 3, Updates(shared, personal, everyone(link)), initial_statistics(link)
    uplink(watched, *given)
    single = list(blocks)
    blocks.clear()
    uplink_over_seeds(watched, SEEDS, *given)
    assert blocks == [len(SEEDS) * count for count in single]


def test_a_plugin_gets_every_seed_with_its_own_limits_in_watts() -> None:
    link = make_air("uniform_forcing", **MIXED)
    seen: set[tuple[float, ...]] = set()
    real = link.design
    assert real is not None

    def watching(problem):  # type: ignore[no-untyped-def]
        seen.add((*problem.power_limit.tolist(), *problem.target_weight.tolist()))
        return real(problem)

    shared, personal = gradients(link)
    given = 3, Updates(shared, personal, everyone(link)), initial_statistics(link)
    watched = replace(link, design=watching, batched=False)
    for seed in SEEDS:
        uplink(replace(watched, seed=seed), *given)
    alone = set(seen)
    seen.clear()
    uplink_over_seeds(watched, SEEDS, *given)
    assert seen == alone
