"""One round over the air: limiting cases, scale, silence, power, and which randomness is shared."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor

from airpfed.air import resources, row_chunks, segments, transceivers, transmit
from airpfed.air import schedule as schedule_module
from airpfed.air.correlation import INDEPENDENT
from airpfed.air.designs import DESIGNS as ROWS
from airpfed.air.designs.power_sharing import share_energy
from airpfed.air.grouping import fixed_grouping, grouping_error, round_grouping
from airpfed.air.impairments import Impairments
from airpfed.air.network import estimate_channels
from airpfed.air.problem import Transceiver, TransceiverProblem, power_share, silent
from airpfed.air.schedule import Updates, Uplink, schedule
from airpfed.air.uplink import initial_statistics
from airpfed.core.rng import stream
from airpfed.testing.links import GAIN, LENGTHS
from support.networks import flat
from support.uplinks import TASKS, as_scheme, everyone, gradients, is_finite, make_air, means, send

DESIGNS = ("uniform_forcing", "mmse", "channel_inversion", "naive_ao")


@pytest.mark.parametrize("absent", [[], [1], [0, 3]])
def test_the_error_free_link_gives_the_weighted_mean_of_the_devices_present(absent):
    """NaN in an absent device's row shows that it is in no sum and no weight."""
    link = make_air("error_free")
    shared, personal = gradients(link)
    present = everyone(link)
    present[absent] = False
    G_s, G_p = means(link, shared, personal, present)
    shared[absent], personal[absent] = torch.nan, torch.nan
    got = send(link, 1, shared, personal, present)
    torch.testing.assert_close(got.shared, G_s.float(), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got.personal, G_p.float(), rtol=1e-6, atol=1e-7)
    assert got.pi == 0


@pytest.mark.parametrize(
    ("access", "packing", "normalizer"), product(("tdma", "concurrent"), ("iq", "real"), ("per_device", "common"))
)
@pytest.mark.parametrize("absent", [[], [2]])
def test_without_noise_uniform_forcing_gives_the_weighted_mean(access, packing, normalizer, absent):
    """Odd lengths, six and more coherence blocks, a tail that one task lacks; 8 antennas null 3 other devices."""
    link = make_air(noise=0.0, access=access, packing=packing, normalizer=normalizer)
    shared, personal = gradients(link)
    present = everyone(link)
    present[absent] = False
    G_s, G_p = means(link, shared, personal, present)
    shared[absent], personal[absent] = torch.nan, torch.nan
    got = send(link, 1, shared, personal, present)
    assert (got.shared - G_s).norm() < 1e-5 * G_s.norm()
    assert (got.personal - G_p).norm() < 1e-5 * G_p.norm()
    assert (got.personal[1, LENGTHS[1] :] == 0).all()


def test_too_few_antennas_leave_interference_even_without_noise():
    """3 antennas cannot null 3 devices of the other task: the check above does depend on M."""
    link = make_air(noise=0.0, access="concurrent", antennas=3)
    shared, personal = gradients(link)
    got = send(link, 1, shared, personal, everyone(link))
    assert min(error.variance for error in got.mse.p.values()) > 1e-3


@pytest.mark.parametrize("normalizer", ["per_device", "common"])
def test_an_all_zero_group_is_received_as_zero(normalizer):
    """The gradient of A at B = 0. With one common sigma there are no groups: then the whole slot is zero here."""
    link = make_air("mmse", normalizer=normalizer)
    shared, personal = gradients(link)
    shared[:, :20] = 0
    personal[:] = 0
    got = send(link, 1, shared, personal, everyone(link))
    assert is_finite(got)
    if normalizer == "per_device":
        assert (got.shared[:20] == 0).all() and (got.shared[20:] != 0).any()
        assert (got.personal == 0).all()
        assert {error.measured for error in got.mse.p.values()} == {0.0}


@pytest.mark.parametrize(
    ("design", "normalizer"),
    product(DESIGNS, ("per_device", "common")),
)
def test_a_round_of_zeros_is_received_as_zeros(design, normalizer):
    link = make_air(design, access="concurrent", normalizer=normalizer)
    got = send(link, 1, torch.zeros(5, 41), torch.zeros(5, 37), everyone(link))
    assert is_finite(got)
    assert (got.shared == 0).all() and (got.personal == 0).all()
    assert got.ledger.joules_max == 0


@pytest.mark.parametrize("normalizer", ["per_device", "common"])
def test_one_device_of_zero_gradient_sends_nothing_and_spoils_nothing(normalizer):
    link = make_air(noise=0.0, normalizer=normalizer)
    shared, personal = gradients(link)
    shared[1], personal[1] = 0, 0
    G_s, G_p = means(link, shared, personal, everyone(link))
    got = send(link, 1, shared, personal, everyone(link))
    assert is_finite(got)
    assert (got.shared - G_s).norm() < 1e-5 * G_s.norm()
    assert (got.personal - G_p).norm() < 1e-5 * G_p.norm()


@pytest.mark.parametrize(
    ("design", "normalizer"),
    product(DESIGNS, ("per_device", "common")),
)
def test_what_is_received_scales_exactly_with_the_gradient(design, normalizer):
    """2^-27, about 1e-8, is exact in floating point: any absolute floor on the way would show."""
    link = make_air(design, normalizer=normalizer)
    shared, personal = gradients(link)
    large = send(link, 1, shared, personal, everyone(link))
    small = send(link, 1, shared * 2**-27, personal * 2**-27, everyone(link))
    torch.testing.assert_close(small.shared, large.shared * 2**-27, rtol=0, atol=0)
    torch.testing.assert_close(small.personal, large.personal * 2**-27, rtol=0, atol=0)
    assert small.pi == large.pi


def test_one_device_alone_is_a_round():
    link = make_air(noise=0.0, task_of=torch.tensor([0]), samples=torch.tensor([4.0], dtype=torch.float64),
                   network=flat(torch.tensor([GAIN], dtype=torch.float64), 8), power_limit=torch.tensor([0.1]).double(),
                   task_names=("only",), lengths=(37,))  # fmt: skip
    shared, personal = gradients(link)
    got = send(link, 1, shared, personal, everyone(link))
    torch.testing.assert_close(got.shared, shared[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.personal, personal, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("access", ["tdma", "concurrent"])
def test_a_task_without_devices_is_not_heard(access):
    link = make_air(access=access)
    shared, personal = gradients(link)
    present = TASKS == 1
    shared[~present], personal[~present] = torch.nan, torch.nan
    got = send(link, 1, shared, personal, present)
    assert got.active_tasks.tolist() == [False, True]
    assert set(got.mse.p) == {"moods"}
    assert is_finite(got) and (got.personal[0] == 0).all()


@pytest.mark.parametrize("design", ["error_free", "uniform_forcing"])
def test_a_round_without_devices_is_empty(design):
    link = make_air(design)
    got = send(link, 1, torch.full((5, 41), torch.nan), torch.full((5, 37), torch.nan), ~everyone(link))
    assert not got.active_tasks.any()
    assert got.pi is None and got.pi_claimed is None and got.mse.s is None and got.mse.p == {}
    assert (got.shared == 0).all() and (got.personal == 0).all()
    assert got.ledger.channel_uses == got.ledger.ofdm_symbols == got.ledger.joules_max == 0


class Spy:
    """Records what is asked and answered for every slot, and the symbols of every block of every slot."""

    def __init__(self, link: Uplink, monkeypatch: pytest.MonkeyPatch) -> None:
        self.slots: list[tuple[TransceiverProblem, Transceiver, list[Tensor]]] = []
        self.link = link
        original, checked, sent = transmit.superpose, transceivers.check_power, iter(range(10**9))

        def kept(problem: TransceiverProblem, made: Transceiver) -> Transceiver:
            self.slots.append((problem, made, []))
            return checked(problem, made)

        def superpose(gain, x, of):
            blocks = [symbols for problem, _, symbols in self.slots for _ in problem.h]
            blocks[next(sent)].append(x)  # the blocks of all slots, in the order of the designs
            return original(gain, x, of)

        monkeypatch.setattr(transmit, "superpose", superpose)
        monkeypatch.setattr(transceivers, "check_power", kept)


@pytest.mark.parametrize(
    ("design", "access", "way"), product(DESIGNS, ("tdma", "concurrent"), (("iq", "per_device"), ("real", "common")))
)
def test_no_slot_exceeds_the_power_limit_and_joules_agree(design, access, way, monkeypatch):
    """A slot's devices are told by how many they are: all five, the first task's two, the second's three."""
    packing, normalizer = way
    spy = Spy(make_air(design, access=access, packing=packing, normalizer=normalizer), monkeypatch)
    shared, personal = gradients(spy.link)
    got = send(spy.link, 1, shared, personal, everyone(spy.link))
    joules = torch.zeros(5, dtype=torch.float64)
    for problem, made, symbols in spy.slots:
        radiated = sum(
            b.abs().square() * x.abs().square().sum(1) for b, x in zip(made.transmit_factors, symbols, strict=True)
        )
        assert (radiated / sum(x.shape[1] for x in symbols) <= problem.power_limit * (1 + 1e-9)).all()
        devices = {5: TASKS >= 0, 2: TASKS == 0, 3: TASKS == 1}[len(problem.power_limit)]
        joules[devices] += radiated * resources.use_seconds(spy.link.bandwidth_hz)
    assert got.ledger.joules_mean == pytest.approx(float(joules.mean()), rel=1e-12)
    assert got.ledger.joules_max == pytest.approx(float(joules.max()), rel=1e-12)


@pytest.mark.parametrize("way", [("iq", "per_device"), ("real", "common")])
@pytest.mark.parametrize("design", DESIGNS)
def test_the_streams_of_a_superposed_slot_share_one_limit(design, way, monkeypatch):
    packing, normalizer = way
    spy = Spy(make_air(design, access="superposed", packing=packing, normalizer=normalizer), monkeypatch)
    got = send(spy.link, 1, *gradients(spy.link), everyone(spy.link))
    assert got.ledger.channel_uses == sum(x.shape[1] for _, _, symbols in spy.slots for x in symbols)
    assert is_finite(got)
    joules = torch.zeros(5, dtype=torch.float64)
    for problem, made, symbols in spy.slots:
        assert problem.h.shape[2] == 10
        assert (power_share(problem, made) <= 1 + 1e-9).all()
        radiated = sum(
            b.abs().square() * x.abs().square().sum(1) for b, x in zip(made.transmit_factors, symbols, strict=True)
        )
        joules += (radiated[:5] + radiated[5:]) * resources.use_seconds(spy.link.bandwidth_hz)
    assert got.ledger.joules_max == pytest.approx(float(joules.max()), rel=1e-12)


def test_superposed_takes_the_uses_of_its_longer_vectors():
    link = make_air(access="superposed", normalizer="common")
    got = send(link, 1, *gradients(link), everyone(link))
    assert got.ledger.channel_uses == (41 + 1) // 2
    fedit = send(link, 1, gradients(link)[0], torch.zeros(5, 0), everyone(link))
    assert fedit.mse.s is not None and fedit.mse.p == {}


@pytest.mark.parametrize("access", ["tdma", "concurrent"])
def test_energy_is_shared_by_the_slots_that_a_device_sends_in(access):
    """The round's mean power keeps the limit and uses it; some slot exceeds it; Pi does not get worse."""
    link = make_air("mmse", access=access, coherence_symbols=12)
    shared, personal = gradients(link)
    slots = schedule(link, Updates(shared, personal, everyone(link)), fixed_grouping(link, everyone(link)))
    flat = segments.split_slots(link, slots, 1, [INDEPENDENT] * 2)
    power, uses = torch.zeros(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    peak, claimed = 0.0, []
    for refine in (None, share_energy):
        [made] = transceivers.design(replace(link, refine=refine), [flat])
        claimed.append(
            sum(float(transmit.transmit(link, *pair, 1).errors.claimed.sum()) for pair in zip(flat, made, strict=True))
        )
    for segment, one in zip(flat, made, strict=True):
        length = torch.tensor([float(b - a) for a, b in segment.block_ranges], dtype=torch.float64)
        square = one.transmit_factors.abs().square() / segment.problem.power_limit
        power.index_add_(0, segment.slot.devices, length @ (square * transceivers.block_powers(link, segment)))
        uses.index_add_(0, segment.slot.devices, length.sum().expand(len(segment.slot.devices)))
        peak = max(peak, float(square.max()))
    assert (power <= uses * (1 + 1e-9)).all()
    assert (power / uses).max() > 0.999
    assert peak > 1.01
    assert claimed[1] < claimed[0]


def test_auto_never_hears_worse_than_the_better_fixed_access():
    """What its designs claim, at equal uses and equal joules; with one slot allowed it is `concurrent`."""
    for antennas in (2, 8):
        for t in (1, 2):
            link = make_air("mmse", antennas=antennas, access="auto", coherence_symbols=10_000, normalizer="common")
            present = everyone(link)
            known = pieces_known(link, t)
            error = {
                grouping: sum(grouping_error(link, known, 0 * link.network.gain, present, group) for group in grouping)
                for grouping in (((0,), (1,)), ((0, 1),), round_grouping(link, t, present))
            }
            assert error[round_grouping(link, t, present)] == min(error.values())
            only = replace(link, personal_slots=1)
            assert round_grouping(only, t, present) == ((0, 1),)


def pieces_known(link: Uplink, t: int) -> Tensor:
    return estimate_channels(link.network, 0.0, link.seed, t, range(1))[0]


def test_the_strongest_device_of_uniform_forcing_sends_at_its_limit(monkeypatch):
    """The limit is used, not only kept: at least one device of every s-block sends with |b|^2 = P."""
    spy = Spy(make_air(), monkeypatch)
    shared, personal = gradients(spy.link)
    send(spy.link, 1, shared, personal, everyone(spy.link))
    problem, made, _ = spy.slots[0]
    torch.testing.assert_close(
        (made.transmit_factors.abs().square() / problem.power_limit).amax(1), torch.ones(len(problem.h)).double()
    )


def test_slots_that_share_a_coherence_block_see_the_same_channel(monkeypatch):
    """s uses 10 + 11 symbols; with 12 a block its second group starts in block 0 and ends in block 1."""
    spy = Spy(make_air(coherence_symbols=12), monkeypatch)
    shared, personal = gradients(spy.link)
    send(spy.link, 1, shared, personal, everyone(spy.link))
    first, second, third = (problem.h for problem, _, _ in spy.slots[:3])
    assert (len(first), len(second), len(third)) == (1, 2, 2)
    torch.testing.assert_close(first[0], second[0], rtol=0, atol=0)
    assert (second[0] != second[1]).all()


def test_every_round_has_its_own_channel(monkeypatch):
    spy = Spy(make_air(), monkeypatch)
    shared, personal = gradients(spy.link)
    for t in (1, 2, 1):
        send(spy.link, t, shared, personal, everyone(spy.link))
    each = len(spy.slots) // 3
    one, two, again = (spy.slots[i * each][0].h for i in range(3))
    assert (one != two).all()
    torch.testing.assert_close(one, again, rtol=0, atol=0)


def test_fading_does_not_depend_on_what_else_is_drawn(monkeypatch):
    """More entries mean more noise and scrambling draws; blocks seen before must keep their channels."""
    spy = Spy(make_air(access="concurrent"), monkeypatch)
    for d_s in (41, 61):
        shared, personal = gradients(spy.link, d_s)
        groups = ((0, 20), (20, d_s))
        send(replace(spy.link, shared_groups=groups), 1, shared, personal, everyone(spy.link))
    each = len(spy.slots) // 2
    short, long = spy.slots[1][0].h, spy.slots[1 + each][0].h
    assert len(long) > len(short)
    torch.testing.assert_close(long[: len(short)], short, rtol=0, atol=0)


def test_pi_weighs_slots_by_entries_and_tasks_by_samples():
    link = make_air("mmse")
    shared, personal = gradients(link)
    got = send(link, 1, shared, personal, everyone(link))
    moods, colours = 0.6 * 30, 0.4 * 37
    expected = 41 * got.mse.s.measured + colours * got.mse.p["colours"].measured + moods * got.mse.p["moods"].measured
    assert got.pi == pytest.approx(expected / (41 + colours + moods), rel=1e-12)


def test_measured_error_times_scale_is_the_squared_error_of_the_sums():
    link = make_air("mmse", access="concurrent")
    shared, personal = gradients(link)
    G_s, G_p = means(link, shared, personal, everyone(link))
    got = send(link, 1, shared, personal, everyone(link))
    assert got.mse.s.measured * got.mse.s.scale == pytest.approx(float((got.shared - G_s).square().sum()), rel=1e-5)
    for n, name in enumerate(link.task_names):
        error = got.mse.p[name]
        assert error.measured * error.scale == pytest.approx(float((got.personal[n] - G_p[n]).square().sum()), rel=1e-5)


@pytest.mark.parametrize("absent", [[], [0]])
def test_a_device_has_one_channel_in_all_slots_that_see_a_block(absent):
    """One long block holds every slot: the p-slots' channels are the s-slot's, whoever else is in the slot."""
    seen: list[TransceiverProblem] = []

    def spy(problem: TransceiverProblem) -> Transceiver:
        seen.append(problem)
        return silent(problem)

    link = replace(make_air(coherence_symbols=10_000, normalizer="common"), design=spy)
    present = everyone(link)
    present[absent] = False
    send(link, 1, *gradients(link), present)
    shared, *personal = seen
    assert len(personal) == 2
    torch.testing.assert_close(torch.cat([problem.h for problem in personal], 2), shared.h, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("access", "energy", "packing", "noise"),
    [
        ("tdma", "per_round", "iq", 1e-12),
        ("concurrent", "per_round", "real", 0.0),
        ("auto", "per_slot", "iq", 0.0),
        ("superposed", "per_round", "real", 1e-12),
        ("superposed", "per_slot", "iq", 0.0),
    ],
)
def test_degenerate_rounds_have_defined_results(access, energy, packing, noise, monkeypatch):
    """One antenna (two rounds), zero gradients, one device (two rounds), nobody, channels all alike or all dead.

    Designs take few steps here: what is asked is that results are defined, not that they are good.
    """
    for steps in ("widely_linear.STEPS", "least_error.STEPS", "power_sharing.STEPS", "forcing.PENALTY_STEPS"):
        monkeypatch.setattr(f"airpfed.air.designs.{steps}", 4)
    link = make_air(
        "mmse", access=access, packing=packing, noise=noise, coherence_symbols=10_000, rescale=True, correlation=None,
        refine=share_energy if energy == "per_round" else None,
    )  # fmt: skip
    link = replace(link, design=ROWS["mmse"])  # not the cached transceivers, which took all steps
    shared, personal = gradients(link)
    rank_one = torch.ones(1, 8, 5, dtype=torch.complex128) * 1e-5
    cases = {
        "one antenna": (replace(link, network=flat(link.network.gain, 1)), shared, personal, everyone(link), None),
        "a zero gradient": (link, shared * (TASKS > 0)[:, None], personal * (TASKS > 0)[:, None], everyone(link), None),
        "all zero": (link, 0 * shared, 0 * personal, everyone(link), None),
        "one device": (link, shared, personal, torch.arange(5) == 3, None),
        "nobody": (link, shared, personal, ~everyone(link), None),
        "no p-vectors": (link, shared, personal[:, :0], everyone(link), None),
        "all channels alike": (link, shared, personal, everyone(link), rank_one),
        "all channels dead": (link, shared, personal, everyone(link), 0 * rank_one),
    }
    for name, (changed, s, p, present, h) in cases.items():
        with monkeypatch.context() as patch:
            if h is not None:
                patch.setattr(schedule_module, "estimate_channels", lambda *_, h=h: (h, h))
            got = send(changed, 1, s, p, present, initial_statistics(changed))
            if "one" in name:
                got = send(changed, 2, s, p, present, got.correlation_statistics)
        assert is_finite(got), name
        assert got.correlation_statistics.isfinite().all(), name
        assert all(0 <= across <= within < 1 for within, across in got.correlation), name
        if name in ("all zero", "nobody", "all channels dead"):
            assert (got.shared == 0).all() or name == "all channels dead", name
            assert got.ledger.joules_max == 0, name


@pytest.mark.parametrize(("access", "packing"), [("tdma", "iq"), ("concurrent", "real"), ("superposed", "iq")])
@pytest.mark.parametrize("kind", ["analog", "exact", "digital"])
def test_some_streams_at_a_time_give_the_sums_of_all_at_once(access, packing, kind, monkeypatch):
    """One stream a chunk, a device absent in the middle, every impairment: equal up to the order of a sum."""
    impairments = Impairments(0.2, 2.0, 0.1, None)
    changes = {"exact": as_scheme("error_free"), "digital": as_scheme("digital")}.get(kind, {})
    link = replace(
        make_air(access=access, packing=packing, csi_error=0.05, impairments=impairments, subcarriers=8), **changes
    )
    present = torch.tensor([True, True, True, False, True])
    together = send(link, 1, *gradients(link), present)
    monkeypatch.setattr(row_chunks, "ENTRIES", 1)
    apart = send(link, 1, *gradients(link), present)
    torch.testing.assert_close(apart.shared, together.shared, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(apart.personal, together.personal, rtol=1e-5, atol=1e-7)
    assert apart.ledger.joules_max == pytest.approx(together.ledger.joules_max, rel=1e-12)
    assert apart.pi == pytest.approx(together.pi, rel=1e-9) and apart.pi_claimed == pytest.approx(together.pi_claimed)


def test_debiasing_real_symbols_brings_nothing_back():
    """Two targets at 20 dB and four antennas: what designs put into the imaginary part stays there."""
    changes = {"antennas": 4, "access": "concurrent", "packing": "real", "coherence_symbols": 10_000}
    errors = {}
    for debias in (False, True):
        link = make_air("mmse", debias, noise=0.1 * GAIN / 100, **changes)
        rounds = [send(link, t, *gradients(link), everyone(link)).mse.p.values() for t in (1, 2)]
        errors[debias] = sum(e.measured for tasks in rounds for e in tasks)
        bias = sum(e.bias for tasks in rounds for e in tasks)
    assert errors[True] < 1.5 * errors[False]
    assert bias < 0.1 * errors[True]


@pytest.mark.parametrize("packing", ["iq", "real"])
def test_shared_energy_keeps_the_limit_whatever_power_symbols_have_block_by_block(packing):
    """Half of every vector three times smaller than the rest: unit power over the group, not in each of its blocks."""
    link = make_air(
        "mmse", packing=packing, coherence_symbols=100, refine=share_energy,
        noise=0.1 * GAIN / 10**0.5, power_limit=torch.full((5,), 0.1, dtype=torch.float64), shared_groups=((0, 400),),
        personal_groups=(), personal_rows=(), lengths=(0, 0),
    )  # fmt: skip
    shared = torch.randn(5, 400, generator=stream(0, "uneven"))
    shared[:, 200:] /= 3
    power_share = []
    for t in range(1, 7):
        got = send(link, t, shared, torch.zeros(5, 0), everyone(link))
        power_share.append(
            got.ledger.joules_max / (0.1 * got.ledger.channel_uses * resources.use_seconds(link.bandwidth_hz))
        )
    assert max(power_share) <= 1 + 1e-9
    assert max(power_share) > 0.9, "it is used, too"
    assert got.ledger.side_bits == 32 * 5 * (2 + (2 if packing == "iq" else 4))


def test_a_head_does_not_lend_its_correlation_to_the_shared_factors():
    """p-vectors of heads alone, all alike; shared A factors that are not: receivers must not take A for the head."""
    link = make_air(
        "mmse", correlation=None, rescale=True, coherence_symbols=10_000, shared_groups=((0, 400), (400, 800)),
        personal_groups=((0, 200),), personal_rows=(2,), lengths=(200, 200),
    )  # fmt: skip
    correlation_statistics = initial_statistics(link)
    for t in range(1, 4):
        rng = stream(5, "kinds", t)
        shared = torch.randn(5, 800, generator=rng)
        heads = torch.randn(2, 200, generator=rng)[TASKS] + 0.1 * torch.randn(5, 200, generator=rng)
        got = send(link, t, shared, heads, everyone(link), correlation_statistics)
        correlation_statistics = got.correlation_statistics
    (a, _), (b, _), (head, _) = got.correlation
    assert max(a, b) < 0.2 and head > 0.8


def test_pi_weighs_tasks_by_the_data_of_the_present():
    """As the sums do: without device 4 the second task has 10 of 18 samples, not 12 of 20."""
    link = make_air()
    present = torch.arange(5) != 4
    got = send(link, 1, *gradients(link), present)
    assert got.mse.s is not None
    parts = {(41, got.mse.s.measured)} | {
        (share * length, got.mse.p[name].measured)
        for share, length, name in zip((8 / 18, 10 / 18), LENGTHS, link.task_names, strict=True)
    }
    assert got.pi == pytest.approx(sum(w * mse for w, mse in parts) / sum(w for w, _ in parts), rel=1e-12)


def test_a_design_never_meets_a_sum_without_a_weight():
    """A gradient of zeros, as that of A in round 1: the slot stays silent, whatever a user's design would do."""

    def fragile(problem):
        assert bool(problem.weights.any())
        return ROWS["channel_inversion"](problem)

    link = replace(make_air("channel_inversion"), design=fragile, batched=False)
    shared, personal = gradients(link)
    received = send(link, 1, 0 * shared, 0 * personal, everyone(link))
    assert not received.shared.any() and received.ledger.joules_max == 0
