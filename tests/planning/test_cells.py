"""Cells mean what a settings file of the same keys means; problems are those of the uplink's slots."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import airpfed as ap
from airpfed.air.digital import rate_blocks, rate_channels
from airpfed.config.settings_file import read_settings
from airpfed.experiment.build.uplink import build_network
from airpfed.planning.channel_study import draw_channels, schedule_full_round
from airpfed.planning.link_study import draw_segment, link_of
from support import checks

SETTINGS = """
[[tasks]]
name = "a"
devices = 3
power_dbm = 10.0

[[tasks]]
name = "b"
devices = 2
samples_per_device = 20
power_dbm = [0.0, 20.0]

[run]
seed = 3

[radio]
antennas = 6
snr_db = 10.0
csi_error = 0.1
coherence_symbols = 20000
drop = 5
channel = { name = "rician", k_db = 3.0 }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "cell.toml").write_text(SETTINGS)
    return tmp_path / "cell.toml"


def cell(**changes) -> ap.RadioNetwork:
    """The cell of SETTINGS."""
    values = {
        "devices": {"a": 3, "b": 2},
        "antennas": 6,
        "snr_db": 10.0,
        "power_dbm": [10, [0, 20.0]],
        "samples": [40, 20],
        "channel": ("rician", {"k_db": 3.0}),
        "csi_error": 0.1,
        "seed": 3,
        "drop": 5,
    }
    return ap.single_cell(**{**values, **changes})


def assert_equal_problems(first: ap.TransceiverProblem, second: ap.TransceiverProblem) -> None:
    for name, value in vars(first).items():
        other = getattr(second, name)
        assert value.equal(other) if isinstance(value, torch.Tensor) else value == other, name


def test_a_cell_is_that_of_a_settings_file(file):
    network, link = cell(), link_of(read_settings(file))
    for name in ("task_of", "samples", "power_limit", "task_names", "noise", "csi_error", "lengths", "seed"):
        value, other = getattr(network.link, name), getattr(link, name)
        assert value.equal(other) if isinstance(value, torch.Tensor) else value == other, name
    for part, h in zip((network.estimates(2, 3), network.channels(2, 3)), link.channels(2, 3), strict=True):
        assert part.equal(h)
    assert network.stations.equal(link.network.stations) and network.devices.equal(link.network.devices)
    assert network.gain.equal(link.network.gain)


@pytest.mark.parametrize("topology", ["joint", "two_hop"])
def test_a_multi_cell_is_that_of_a_settings_file(file, topology):
    settings = read_settings(file, [f"radio.topology={topology}", "radio.edge_distance_m=300"])
    network = ap.multi_cell(
        **{"devices": [3, 2], "topology": topology, "edge_distance_m": 300, "antennas": 6, "seed": 3, "drop": 5}
    )
    expected = build_network(settings.radio, 3, torch.tensor([0, 0, 0, 1, 1]), 2)
    assert network.gain.equal(expected.gain) and network.gain.shape == (2, 5)


def test_a_cell_free_network_has_all_antennas_in_each_receiver():
    network = ap.cell_free(devices=[3, 2], access_points=9, antennas=2, square_m=300)
    assert network.gain.shape == (9, 5) and 0 <= float(network.stations.min()) <= float(network.stations.max()) <= 300
    problem = network.problem(target="p")
    assert problem.h.shape == (8, 18, 5) and problem.antenna_mask is None


@pytest.mark.parametrize("make", [ap.single_cell, ap.multi_cell])
@pytest.mark.parametrize(
    ("access", "targets"), [("tdma", ["s", 0, "task1"]), ("concurrent", [None, "p"]), ("superposed", ["s+p"])]
)
def test_problems_are_those_of_the_slots_of_a_round(make, access, targets):
    network = make(devices=[3, 2], antennas=4, snr_db=5, samples=[30, 10], csi_error=0.2, access=access)
    link = replace(network.link, power_over="slot")  # a problem of one's own has no symbols whose power is known
    drops = draw_channels(link, [(link.network, 1.0)], 2)
    slots = schedule_full_round(network.link, drops)
    assert len(slots) == len(targets)
    for slot, target in zip(slots, targets, strict=True):
        problem = network.problem(round=0, blocks=2, target=target)
        expected = draw_segment(link, slot, drops, 10, 0.0).problem
        # A study has drops with variances of their own, so that its problems have them for each block.
        variance = problem.csi_variance.expand(expected.csi_variance.shape)
        assert variance.equal(expected.csi_variance)
        assert_equal_problems(type(problem)(**{**vars(problem), "csi_variance": variance}), expected)
    assert network.problem(round=1).h.equal(network.problem(round=0).h) is False


def test_samples_may_be_given_for_every_device():
    problem = ap.single_cell(devices=[3, 2], samples=[[1, 2, 3], 4]).problem()
    torch.testing.assert_close(problem.weights, torch.tensor([[1, 2, 3, 4, 4]], dtype=torch.float64) / 14)
    uniform = ap.single_cell(devices=[3, 2], samples=[[7, 7, 7], [7, 7]])
    assert_equal_problems(uniform.problem(), ap.single_cell(devices=[3, 2], samples=7).problem())


def test_numbers_of_numpy_and_torch_are_numbers():
    checks.disarm("airpfed.planning.cells", "single_cell")
    checks.disarm("airpfed.planning.cells", "_network")
    checks.disarm("airpfed.planning.cells", "_per_task")
    network = ap.single_cell(
        devices=np.array([3, 2]), antennas=np.int64(4), snr_db=torch.tensor(3.0), power_dbm=np.array([10.0, 20.0])
    )
    assert network.gain.shape == (1, 5)
    assert network.link.power_limit.tolist() == pytest.approx([0.01] * 3 + [0.1] * 2)


def test_a_function_is_a_channel():
    def line(site, t, blocks, *, turns: float = 1.0):
        phase = 2 * math.pi * turns * torch.arange(site.antennas * site.gain.shape[1]).double()
        h = site.gain.sqrt() * torch.polar(torch.ones(()).double(), phase).reshape(site.antennas, -1)
        return h.expand(len(blocks), -1, -1)

    network = ap.single_cell(devices=[2, 1], antennas=4, channel=line)
    assert "line" in repr(network) and network.channels(0, 5).real.allclose(network.gain.sqrt().expand(5, 4, 3))
    turned = network.replace(channel=(line, {"turns": 0.5})).channels(0, 1)
    assert turned.real[0, 0].allclose(network.gain[0].sqrt() * torch.tensor([1.0, -1.0, 1.0]))
    assert "line(turns=0.5)" in repr(network.replace(channel=(line, {"turns": 0.5})))


def test_draws_of_a_plan_are_independent_where_blocks_are_neighbours_in_the_band():
    link = ap.single_cell(devices=[8], antennas=16, snr_db=10, coherence_symbols="derived", csi_error=None).link
    assert link.subcarrier_groups == 32
    h = draw_channels(link, [(link.network, 1.0)], 6).h.flatten(1)
    h = h / h.abs().square().sum(1, keepdim=True).sqrt()
    products = (h @ h.mH).abs() - torch.eye(6)
    assert products.max() < 0.4  # of neighbours: above 0.9
    neighbours = link.channels(0, 6)[1].flatten(1)
    assert (neighbours[0].conj() * neighbours[1]).sum().abs() / neighbours[:2].abs().square().sum(1).prod().sqrt() > 0.9


def test_draws_of_a_plan_over_a_file_are_those_of_the_file(tmp_path):
    rng = np.random.default_rng(0)
    h = 1e-5 * (rng.standard_normal((3, 8, 4, 3)) + 1j * rng.standard_normal((3, 8, 4, 3)))
    np.savez(tmp_path / "h.npz", h=h, subcarrier_groups=4)
    link = ap.single_cell(devices=[3], antennas=4, channel=("file", {"path": str(tmp_path / "h.npz")})).link
    drawn = draw_channels(link, [(link.network, 1.0)], 20, recorded=True).h
    assert link.subcarrier_groups == 4 and len(torch.unique(drawn.flatten(1).real, dim=0)) == 20


def test_the_rates_of_bits_are_means_over_the_whole_band():
    link = ap.single_cell(devices=[2], antennas=2, coherence_symbols="derived").link
    assert len(rate_channels(link, 1)[0]) == rate_blocks(link) == 32
    assert rate_blocks(ap.single_cell(devices=[2], antennas=2).link) == 8


def test_a_file_of_channels_gives_a_cell_its_blocks(tmp_path):
    rng = np.random.default_rng(0)
    h = 1e-5 * (rng.standard_normal((2, 64, 4, 3)) + 1j * rng.standard_normal((2, 64, 4, 3)))
    np.savez(tmp_path / "h.npz", h=h, subcarrier_groups=32, coherence_s=32 * 100 / 20e6)
    link = ap.single_cell(devices=[3], antennas=4, channel=("file", {"path": str(tmp_path / "h.npz")})).link
    assert (link.subcarrier_groups, link.coherence_symbols) == (32, 100)
    flat = ap.single_cell(devices=[3], antennas=4)
    there = flat.replace(channel=("file", {"path": str(tmp_path / "h.npz")}))
    assert there.link.coherence_symbols == 100 and there.replace(channel="rayleigh").link.coherence_symbols == 20_000
    assert flat.replace(subcarrier_groups="derived").link.coherence_symbols == 3936


def test_replace_keeps_what_it_is_not_given():
    network = cell().replace(snr_db=20)
    assert network.settings.radio.model_dump() == {**cell().settings.radio.model_dump(), "snr_db": 20.0}
    assert network.link.noise == pytest.approx(cell().link.noise / 10)
    thermal = cell().replace(snr_db=None)
    assert thermal.settings.radio.snr_db is None and "noise 3.99e-13 W" in repr(thermal)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"antenas": 4}, "single_cell: radio.antenas: unknown key; did you mean 'antennas'?"),
        ({"antennas": 0}, "single_cell: radio.antennas = 0: should be a whole number at least 1"),
        ({"snr_db": "ten"}, 'single_cell: radio.snr_db = "ten": should be a number'),
        ({"devices": [4, 0]}, "single_cell: devices of task1 = 0: should be at least 1"),
        ({"devices": []}, "single_cell: tasks: "),
        ({"samples": [1, 2, 3]}, "single_cell: samples has 3 values: should be one, or 2, one a task"),
        ({"samples": [[1, 2], 3]}, "single_cell: samples of task0 has 2 values: should be one, or 4, one a device"),
        ({"samples": [[1, 2, 0, 1], 3]}, "single_cell: samples of task0 = 0: should be a number greater than 0"),
        ({"power_dbm": [[1, 2], 3]}, "single_cell: tasks.task0: power_dbm has 2 values: should be one, or 4"),
        ({"topology": "joint"}, "single_cell: no option 'topology'; see ap.multi_cell"),
        ({"design": "mmse"}, "single_cell: no option 'design'; see ap.link_study"),
        ({"scheme": "digital"}, "single_cell: no option 'scheme'"),
        ({"edge_distance_m": 3.0}, "single_cell: radio.edge_distance_m = 3.0: does nothing with radio.topology"),
        ({"snr_db": 3, "noise_dbm": "off"}, 'single_cell: radio.noise_dbm = "off": does nothing with radio.snr_db'),
        ({"channel": "rice"}, 'single_cell: radio.channel = "rice": should be one of'),
        ({"channel": ("rician", {"k": 3})}, "single_cell: radio.channel.k: no option of rician"),
        ({"channel": 3}, "single_cell: radio.channel"),
        ({"channel": lambda site, t, blocks, *, speed: 0}, "channel lambda: option speed has no type"),
    ],
)
def test_a_wrong_value_is_one_line(values, message):
    checks.disarm("airpfed.planning.cells", "single_cell")
    with pytest.raises(ap.UserError) as raised:
        ap.single_cell(**{"devices": [4, 4], **values})
    text = str(raised.value)
    assert text.startswith(message) and "\n" not in text, text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda net: net.problem(target="task2"), "problem: target 'task2' should be one of s, p, s+p, task0, task1"),
        (lambda net: net.problem(target=2), "problem: target 2 should be one of s, p, s+p, task0, task1"),
        (lambda net: net.problem(blocks=0), "blocks 0: should be at least 1"),
        (lambda net: net.replace(interferers={"x_m": 50.0}), "interferers = .*: should be a list of tables, such as"),
        (lambda net: net.replace(interferers=[{"x_m": 0.5}]).problem(), "interferers: number 1 is 0.5 m from"),
        (
            lambda net: net.replace(interferers=[{"x_m": 50.0, "load": 0.0}, {"x_m": 9.0, "power_dbm": 150}]).problem(),
            "interferers: number 2 arrives .* dB above the noise; should be at most 120 dB",
        ),
        *(
            (lambda net, wrong=wrong: ap.TransceiverProblem.from_channels(torch.ones(1, 2, 3), **wrong), message)
            for wrong, message in (
                (
                    {"power_limit": [1, 2]},
                    r"power_limit has the shape \(2,\): should be a number, or 3, one for each of",
                ),
                ({"power_limit": -1}, "power_limit has NaN, infinities or negative numbers"),
                ({"csi_variance": [0, 0, -1]}, "csi_variance has NaN, infinities or negative numbers"),
                ({"target_weight": [1, 2]}, r"target_weight has the shape \(2,\): should be a number$"),
                ({"noise": [1, 2]}, r"noise has the shape \(2,\): should be a number$"),
                ({"noise": math.nan}, "noise has NaN, infinities or negative numbers"),
                ({"noise": "x"}, "noise is 'x': should be numbers"),
                ({"weights": [1, 2, 3j]}, "weights are complex: should be real"),
                ({"weights": torch.ones(0, 3)}, r"weights have the shape \(0, 3\): should be \(targets, 3\)"),
                ({"weights": [1, math.nan, 1]}, "weights have NaN, infinities or negative numbers"),
            )
        ),
        (lambda net: ap.TransceiverProblem.from_channels(torch.ones(1, 2, 0)), r"h has the shape \(1, 2, 0\): should"),
        (lambda net: ap.TransceiverProblem.from_channels(math.nan * torch.ones(1, 2, 3)), "h has NaN or infinities"),
        (lambda net: net.channels(0, 0), "blocks 0: should be at least 1"),
        (lambda net: net.replace(design="mmse"), "replace: no option 'design'"),
        (lambda net: net.replace(antenas=3), "replace: radio.antenas: unknown key; did you mean 'antennas'?"),
        (lambda net: ap.multi_cell(topology="ring"), "multi_cell: topology = 'ring': should be"),
        (lambda net: ap.cell_free(topology="joint"), "cell_free: no option 'topology'"),
        (lambda net: ap.single_cell(rank_shared=0).problem(), "problem: rank_shared = 0 leaves nothing to send"),
        (lambda net: ap.single_cell(channel=lambda site, t, blocks: 1).channels(0, 1), 'radio.channel = "lambda": '),
        (lambda net: ap.TransceiverProblem.from_channels(torch.ones(3)), r"h has the shape \(3,\): should be"),
        (
            lambda net: ap.TransceiverProblem.from_channels(torch.ones(1, 2, 3), [1, 2]),
            r"weights have the shape \(1, 2\): should be \(targets, 3\)",
        ),
    ],
)
def test_a_wrong_call_is_one_line(call, message):
    for name in ("multi_cell", "RadioNetwork.problem"):
        checks.disarm("airpfed.planning.cells", name)
    with pytest.raises(ap.UserError, match=message.replace("+", r"\+").replace("(task", r"\(task")):
        call(ap.single_cell(devices=[4, 4]))


def test_a_problem_from_channels_has_the_error_of_that_of_the_network():
    problem = cell().problem()
    given = ap.TransceiverProblem.from_channels(
        problem.h.numpy(),
        problem.weights[0],
        noise=problem.noise,
        power_limit=problem.power_limit,
        csi_variance=problem.csi_variance[0],
    )
    transceiver = ap.designs.mmse(problem)
    torch.testing.assert_close(ap.mse(given, transceiver), ap.mse(problem, transceiver), rtol=1e-12, atol=0)


@pytest.mark.parametrize("interference", ["known", "mean"])
def test_a_problem_has_the_interference_of_a_round(interference):
    """Of known covariance or mean: the channels and the noise that a round's designs get."""
    network = cell(interferers=[{"x_m": 50.0}], interference=interference)
    problem, clean, received = network.problem(), cell().problem(), network.link.received_channels(0, 8)
    torch.testing.assert_close(problem.h, received.h_est, rtol=0, atol=0)
    assert problem.noise == network.link.assumed_noise
    errors = [float(ap.mse(each, ap.designs.mmse(each)).mean()) for each in (clean, problem)]
    assert errors[1] > 1.1 * errors[0]


def test_interferers_have_the_path_loss_of_the_settings(tmp_path):
    """Also where devices have channels of their own, from a file."""
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "h.npz", h=1e-5 * (rng.standard_normal((4, 1, 6, 5)) + 1j * rng.standard_normal((4, 1, 6, 5))))
    own = {"channel": ("file", {"path": str(tmp_path / "h.npz")}), "interferers": [{"x_m": 50.0}], "csi_error": None}
    powers = []
    for exponent in (2.0, 3.0):
        interference = cell(**own, path_loss_exponent=exponent).link.interference
        assert interference is not None
        powers.append(interference.mean_power)
    assert powers[0] / powers[1] == pytest.approx(50.0)


def test_a_task_s_number_may_be_numpy_s():
    assert torch.equal(cell().problem(target=np.int64(1)).weights, cell().problem(target=1).weights)


def test_without_noise_forcing_is_exact_and_no_error_is_below_the_bound():
    network = ap.single_cell(devices=[4, 4], antennas=8, noise_dbm="off")
    problem = network.problem()
    assert float(ap.mse(problem, ap.designs.uniform_forcing(problem)).max()) < 1e-20
    problem = network.replace(noise_dbm=-90).problem()
    for name, design in ap.DESIGNS.items():
        assert bool((ap.mse(problem, design(problem))[:, 0] >= ap.lower_bound(problem)).all()), name
