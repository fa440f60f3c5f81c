"""Mixing is orthogonal, common to all devices, leaves padding alone, and makes symbols of a heavy-tailed row equal."""

from dataclasses import replace

import pytest
import torch
from scipy.linalg import hadamard as scipy_hadamard
from torch import Tensor

from airpfed.air.correlation import INDEPENDENT
from airpfed.air.impairments import impulses
from airpfed.air.mixing import EntryMixing, GroupMixing, hadamard, hadamard_blocks
from airpfed.air.schedule import Updates, Uplink, schedule
from airpfed.air.segments import split_slots
from airpfed.air.symbols import pack_symbols
from airpfed.air.transceivers import design
from support.uplinks import everyone, excess, large_air, make_air, means, rounds, send, slots, z_of


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def heavy(rows: int, entries: int) -> Tensor:
    """Entries of which a few hold most of the power."""
    normal = torch.randn(rows, entries, dtype=torch.float64, generator=rng(1))
    return normal.sign() * normal.abs() ** 6


@pytest.mark.parametrize("size", [1, 2, 8, 16, 64, 128, 256])
def test_the_transform_is_sylvester_s_up_to_order(size: int) -> None:
    """Every row of the transform of unit vectors is a row of the matrix; it is orthogonal and its own inverse."""
    ours = hadamard(torch.eye(size, dtype=torch.float64))
    known = torch.tensor(scipy_hadamard(size), dtype=torch.float64) / size**0.5
    assert {tuple(row) for row in ours.sign().tolist()} == {tuple(row) for row in known.sign().tolist()}
    torch.testing.assert_close(ours @ ours.T, torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(hadamard(ours), torch.eye(size, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("entries", [1, 2, 63, 64, 200, 700, 1000])
@pytest.mark.parametrize("mixing", ["full", "permutation"])
def test_the_map_is_orthogonal_and_undone(entries: int, mixing: str) -> None:
    drawn, x = EntryMixing.draw(entries, mixing, rng()), heavy(3, entries)  # type: ignore[arg-type]
    mixed = drawn.apply(x)
    torch.testing.assert_close(drawn.undo(mixed), x, rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(mixed @ mixed.T, x @ x.T, rtol=1e-12, atol=1e-9)
    assert entries < 3 or not torch.equal(mixed, x)


def test_blocks_leave_less_than_the_smallest() -> None:
    for entries in range(1, 1200):
        parts = hadamard_blocks(entries)
        covered = sum(count * size for _, count, size in parts)
        assert entries - covered < 64 and all(size & (size - 1) == 0 for _, _, size in parts)


def test_padding_is_not_mixed_and_equal_lengths_share_the_map() -> None:
    lengths = torch.tensor([300, 100, 300])
    x = heavy(3, 300)
    x[1, 100:] = 0.0
    group = GroupMixing.draw(lengths, "full", rng())
    assert group is not None
    mixed = group.apply(x, lengths)
    assert bool((mixed[1, 100:] == 0).all())
    torch.testing.assert_close(group.apply(x[:1] + x[2:], lengths[:1]), mixed[:1] + mixed[2:], rtol=1e-12, atol=1e-9)
    torch.testing.assert_close(group.undo(mixed, lengths), x, rtol=1e-12, atol=1e-9)
    assert GroupMixing.draw(lengths, "none", rng()) is None


def test_the_largest_symbol_comes_down_to_a_gaussian_s() -> None:
    """Heavy-tailed entries as symbols of 256 subcarriers: only the whole map gives a Gaussian's largest power."""
    x = heavy(8, 1 << 14)
    normal = torch.randn(x.shape, dtype=torch.float64, generator=rng(2))

    def largest_db(values: Tensor) -> float:
        power = values.square().reshape(len(values), -1, 512).mean(2)
        return float((power.amax(1) / power.mean(1)).log10().mean() * 10)

    full, permuted = (EntryMixing.draw(1 << 14, mixing, rng()).apply(x) for mixing in ("full", "permutation"))
    assert largest_db(full) < largest_db(normal) + 0.4
    assert largest_db(permuted) > 3 and largest_db(x) > 3


def tailed(link: Uplink, draw: int) -> tuple[Tensor, Tensor]:
    """Gradients of heavy tails, correlated within a task."""
    rng, d = torch.Generator().manual_seed(draw), link.shared_groups[-1][1]
    common, own = (torch.randn(n, 5, d, generator=rng, dtype=torch.float64) for n in (1, 2))
    rows = (0.7 * common[:, :1] + 0.7 * own).sign() * (0.7 * common[:, :1] + 0.7 * own).abs() ** 4
    return rows[0].float(), (rows[1] * (torch.arange(d) < torch.tensor(link.lengths)[link.task_of][:, None])).float()


@pytest.mark.parametrize("mixing", ["full", "permutation"])
@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("normalizer", ["per_device", "common"])
def test_without_noise_the_mixed_sum_is_the_weighted_mean(mixing: str, packing: str, normalizer: str) -> None:
    link = make_air(mixing=mixing, packing=packing, normalizer=normalizer, power_over="symbol", backhaul_bits=None)
    link = replace(link, noise=1e-14 * link.noise)
    received, expected = send(link, 1, *small(), everyone(link)), means(link, *small(), everyone(link))
    torch.testing.assert_close(received.shared.double(), expected[0].double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(received.personal.double(), expected[1].double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("design_name", "access"), [("uniform_forcing", "tdma"), ("mmse", "concurrent")])
def test_claims_hold_of_mixed_gradients_of_heavy_tails(design_name: str, access: str, monkeypatch) -> None:
    link = large_air(design_name, access=access, mixing="full", power_over="symbol", d=512, subcarriers=64)
    rows = list(rounds(link, 12, monkeypatch, fresh=False, of=tailed))
    assert abs(z_of(excess(rows, lambda e: e.claimed_genie))) < 5


@pytest.mark.parametrize("access", ["tdma", "superposed"])
@pytest.mark.parametrize("packing", ["iq", "real"])
@pytest.mark.parametrize("groups", [1, 4])
def test_no_ofdm_symbol_exceeds_the_limit(access: str, packing: str, groups: int) -> None:
    """The mean power of every device on every OFDM symbol, its streams added; without the limit some exceed it."""

    def largest(power_over: str) -> float:
        link = large_air(
            "uniform_forcing", access=access, packing=packing, power_over=power_over, d=512,
            subcarriers=64, subcarrier_groups=groups, mixing="full",
        )  # fmt: skip
        link = replace(link, coherence_symbols=40)
        plan = schedule(
            link, Updates(*tailed(link, 0), everyone(link)), ((0,), (1,)) if access == "tdma" else ((0, 1),)
        )
        segments = split_slots(link, plan, 1, [INDEPENDENT] * 4)
        [transceivers] = design(link, [segments])
        shares = []
        for segment, transceiver in zip(segments, transceivers, strict=True):
            x = pack_symbols(segment.group.entries[:], link.packing)
            factor = torch.cat(
                [
                    transceiver.transmit_factors[i][:, None].expand(-1, b - a)
                    for i, (a, b) in enumerate(segment.block_ranges)
                ],
                1,
            )
            device, symbol = segment.slot.devices, segment.positions.symbol
            for k in torch.unique(device).tolist():
                power = (factor * x)[device == k].sum(0).abs().square()
                by_symbol = [power[symbol == s].mean() for s in torch.unique(symbol).tolist()]
                shares.append(float(torch.stack(by_symbol).max() / link.power_limit[k]))
        return max(shares)

    assert largest("symbol") <= 1 + 1e-9
    assert largest("slot") > 1.1


def test_reports_of_the_largest_symbol_are_charged() -> None:
    sent = [
        send(make_air("mmse", power_over=over), 1, *small(), torch.ones(5, dtype=torch.bool))
        for over in ("slot", "symbol")
    ]
    groups = 2 + 2  # of the s-vector and of the p-vectors
    assert sent[1].ledger.side_bits - sent[0].ledger.side_bits == 5 * groups * 32


def small() -> tuple[Tensor, Tensor]:
    link = make_air()
    own = torch.arange(max(link.lengths)) < torch.tensor(link.lengths)[link.task_of][:, None]
    return torch.randn(5, 41, generator=rng()), torch.randn(5, max(link.lengths), generator=rng(1)) * own


def test_impulses_have_the_stable_law() -> None:
    """E exp(j w Re z) = exp(-(gamma w)^alpha) of sqrt(A) G, and alpha near 2 is Gaussian."""
    gamma, alpha, count = 0.7, 1.5, 200_000
    normal = torch.randn(count, dtype=torch.complex128, generator=rng(3)) * 2 * gamma
    z = impulses(alpha, count, rng(4)) * normal
    for w in (0.3, 1.0, 2.0):
        values = (w * z.real).cos()
        assert abs(float(values.mean()) - 2.718281828 ** -((gamma * w) ** alpha)) < 5 * float(values.std()) / count**0.5


def test_clipping_at_the_server_is_the_remedy_for_impulses(monkeypatch) -> None:
    """Impulsive noise claims nothing; clipped sums have a smaller error in total."""
    errors = {}
    for clipping in (float("inf"), 3.0):
        link = large_air("uniform_forcing", noise_alpha=1.3, receive_clipping=clipping, mixing="full", d=800)
        rows = list(rounds(link, 6, monkeypatch))
        assert all(error.claimed is None for row in rows for error in slots(row))
        errors[clipping] = sum(error.measured for row in rows for error in slots(row))
    assert errors[3.0] < 0.5 * errors[float("inf")]
