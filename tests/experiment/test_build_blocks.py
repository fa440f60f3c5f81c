"""Coherence blocks from settings: given or derived, with pilots that fit, and what is refused."""

import pytest
import torch

import airpfed as ap
from airpfed.air.coherence import time_correlation
from airpfed.air.network import NO_PILOTS, Estimation
from airpfed.config.schema import RadioSettings, Settings
from airpfed.config.settings_file import differences, read_settings, read_stored, spelled_out, write_settings
from airpfed.core.errors import UserError
from airpfed.experiment.build.blocks import block_shape, estimate_age, pilot_notes, plan_blocks
from airpfed.experiment.build.uplink import build_network

SELECTIVE = {"channel": {"name": "rayleigh", "delay_spread_s": 50e-9}}
DERIVED = {**SELECTIVE, "coherence_symbols": "derived", "subcarrier_groups": "derived"}


def radio(**changes) -> RadioSettings:
    return RadioSettings(**changes)


def test_given_blocks_are_flat_and_do_not_change():
    plan = plan_blocks(radio(coherence_symbols=20_000, pilots="perfect"), 16)
    assert (plan.groups, plan.length, plan.data_uses) == (1, 20_000, 20_000)
    assert plan.estimation == NO_PILOTS and plan.change is None
    assert block_shape(radio(subcarrier_groups=8)) == (8, 20_000)


def test_pilots_by_default_are_a_tenth_of_any_block_unless_the_error_is_given():
    assert plan_blocks(radio(coherence_symbols=500), 16).estimation.pilots == 3
    for known in ({"csi_error": 0.0}, {"csi_error": 0.1}, {"scheme": "error_free"}):
        assert plan_blocks(radio(**known), 16).estimation == NO_PILOTS


def test_nothing_is_derived_for_a_link_without_a_channel():
    plan = plan_blocks(radio(scheme="error_free"), 10**6)
    assert (plan.groups, plan.length) == (1, 20_000) and plan.change is None


def test_a_channel_without_a_delay_spread_has_the_default_blocks_and_is_constant_within():
    def mine(site, t, blocks):
        return site.antenna_gain.sqrt().to(torch.complex128).expand(len(blocks), -1, -1)

    network = ap.single_cell(devices=[4], channel=mine, coherence_symbols="derived", csi_error=None)
    plan = plan_blocks(network.settings.radio, 16)
    assert (plan.groups, plan.length, plan.change) == (32, 3936, None)
    assert network.settings.radio.delay_spread_s is None
    assert plan.estimation == Estimation(pilots=24, derived=True)


def test_the_honest_default():
    """32 groups of 32 subcarriers, 123 symbols; a tenth of 3,936 uses for 16 devices are 24 each."""
    plan = plan_blocks(radio(feedback_delay_s=1e-3), 16)
    assert (plan.groups, plan.length) == (32, 32 * 123)
    assert plan.estimation.pilots == 24 and plan.data_uses == 3936 - 16 * 24
    age = float(time_correlation(3 / 3.6 * 3.5e9 / 299_792_458, torch.tensor(1e-3)))
    assert plan.estimation.age == pytest.approx(age) and 0.99 < age < 1
    assert plan.change is not None and plan.change.data_uses == plan.data_uses
    asked = plan_blocks(radio(**DERIVED, pilots="derived", feedback_delay_s=1e-3), 16)
    assert (asked.groups, asked.length, asked.estimation) == (plan.groups, plan.length, plan.estimation)
    site = build_network(radio(), 0, torch.zeros(4, dtype=torch.long), 1)
    h, _ = site.channel_model(0, 1, range(64))
    assert not torch.allclose(h[0], h[1]) and not torch.allclose(h[0], h[32])


@pytest.mark.parametrize(
    ("within", "derived", "changes"),
    [("auto", True, True), ("auto", False, False), ("changing", False, True), ("constant", True, False)],
)
def test_whether_channels_change_within_a_block(within, derived, changes):
    given = DERIVED if derived else {**SELECTIVE, "coherence_symbols": 500}
    plan = plan_blocks(radio(**given, within_block=within), 4)
    assert (plan.change is not None) == changes


def test_a_still_channel_has_blocks_without_an_end_and_pilots_that_are_enough():
    plan = plan_blocks(radio(**DERIVED, speed_kmh=0.0, pilots="derived"), 16)
    assert plan.length > 10**6 and plan.estimation.pilots == 1000
    assert plan.change is not None and plan.change.mean > 0.99


def test_one_given_number_leaves_the_other_to_be_derived():
    given = radio(**{**DERIVED, "subcarrier_groups": 64})
    groups, length = block_shape(given)
    assert groups == 64 and length % 16 == 0 and length < 3936
    assert block_shape(radio(**{**DERIVED, "coherence_symbols": 200}))[1] == 200
    assert 16 <= block_shape(radio(**{**DERIVED, "coherence_symbols": 200}))[0] <= 1024


def test_the_speed_is_the_channel_s_own_if_it_has_one():
    def of(**changes):
        return radio(channel={"name": "tdl_a", "delay_spread_s": 1e-7, **changes}, feedback_delay_s=1e-3)

    assert estimate_age(of(speed_mps=0.0)) == 1.0
    assert estimate_age(of()) == pytest.approx(estimate_age(radio(feedback_delay_s=1e-3)), abs=1e-4)  # 3 km/h
    assert block_shape(of()) != block_shape(of(speed_mps=20.0))
    assert estimate_age(of(speed_mps=20.0)) < 0.9
    assert estimate_age(radio(csi_age_correlation=0.7)) == 0.7


REFUSED = {
    "pilots that do not fit": ({"coherence_symbols": 200, "pilots": 16}, 16, ["256", "200", "at most 12"]),
    "no room for one pilot": ({"coherence_symbols": 10, "pilots": "derived"}, 16, ["10 uses", "at least 17"]),
    "so many devices": ({}, 4000, ['pilots = "derived"', "3936 uses", "4000 devices", 'pilots = "perfect"']),
    "a group that is too wide": ({**DERIVED, "subcarrier_groups": 1}, 4, ["subcarrier_groups = 1", "at least 32"]),
    "a block that is too long": (
        {**DERIVED, "coherence_symbols": 20_000},
        4,
        ["coherence_symbols = 20000", "at most 3936"],
    ),
    "change of such a channel": (
        {"within_block": "changing", "channel": "umi"},
        4,
        ['within_block = "changing"', "umi", "delay_spread_s"],
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_in_a_line_that_says_what_could(case):
    changes, devices, parts = REFUSED[case]
    with pytest.raises(UserError) as error:
        plan_blocks(radio(**changes), devices)
    line = str(error.value)
    assert "\n" not in line and all(part in line for part in parts), line


@pytest.mark.parametrize("value", ["slow", (1e-8, 2e-8), -1.0, True])
def test_a_delay_spread_of_an_own_channel_is_checked(value):
    def mine(site, t, blocks, *, delay_spread_s=value):
        return site.antenna_gain.to(torch.complex128).expand(len(blocks), -1, -1)

    mine.__annotations__ = {"delay_spread_s": tuple[float, ...] if isinstance(value, tuple) else type(value)}
    with pytest.raises(UserError, match=r"radio.channel.delay_spread_s = .* should be seconds"):
        ap.single_cell(devices=[4], channel=mine, coherence_symbols="derived")


def test_defaults_that_depend_on_others_are_written_out_and_equal_when_read():
    for given in (
        {},
        {"coherence_symbols": 500},
        {"scheme": "error_free"},
        {"csi_error": 0.1},
        {"channel": "file(path=a.npz)"},
    ):
        one = radio(**given)
        assert RadioSettings.model_validate(one.model_dump(exclude_none=True)) == one
    assert radio().csi_error == 0.0 and radio().coherence_symbols == "derived"
    file = radio(channel={"name": "file", "path": "a.npz"})
    assert (file.subcarrier_groups, file.coherence_symbols, file.pilots) == ("recorded", "recorded", "derived")
    with pytest.raises(ValueError, match="recorded"):
        radio(subcarrier_groups="recorded")


def test_much_of_a_block_for_pilots_is_told():
    def notes(devices: int, **changes) -> list[str]:
        network = ap.single_cell(devices=[devices], csi_error=None, coherence_symbols="derived", **changes)
        return pilot_notes(network.settings.radio, network.link)

    assert notes(300) == notes(70, pilots=50) == []
    assert "2000 devices takes 51% of a coherence block" in "".join(notes(2000))


@pytest.mark.parametrize("speed", [30.0, 60.0, 500.0])
def test_blocks_of_single_symbols_change_by_what_they_may(speed):
    """Pilots take a part of the only symbol: the rest lies in its middle, not beyond it."""
    plan = plan_blocks(radio(speed_kmh=speed, carrier_hz=60e9), 8)
    assert plan.change is not None and plan.data_uses < plan.length
    assert 2 * (1 - plan.change.mean) < 0.011


def test_pilots_and_csi_error_are_alternatives():
    with pytest.raises(ValueError, match="csi_error"):
        radio(csi_error=0.1, pilots=3)


def test_a_network_is_built_with_all_of_it():
    network = ap.single_cell(
        devices=[4, 4],
        antennas=8,
        snr_db=10,
        channel=("rayleigh", {"delay_spread_s": 50e-9}),
        coherence_symbols="derived",
        subcarrier_groups="derived",
        pilots=4,
        pilot_contamination_db=-20.0,
        feedback_delay_s=1e-3,
        feedback_bits=16,
        speed_kmh=10.0,
    )
    link = network.link
    assert link.estimation.pilots == 4 and link.estimation.contamination == pytest.approx(0.01)
    assert link.feedback_bits == 16 and link.change is not None
    problem = network.problem(blocks=3)
    assert problem.csi_variance.std() > 0 and not torch.allclose(network.estimates(1, 2), network.channels(1, 2))
    study = ap.link_study("uniform_forcing", network, draws=20, gap=False)
    known = ap.link_study("uniform_forcing", network.replace(pilots="perfect", pilot_contamination_db=None), draws=20)
    assert study.select_dtypes("number").notna().any().any() and len(study) == len(known) == 1


@pytest.mark.parametrize("name", ["rayleigh", "rician"])
@pytest.mark.parametrize("pilots", ["", "pilots = 3"])
def test_a_stored_run_is_the_run(name, pilots, tmp_path):
    """Also with options beside the delay spread, whose place among them is the row's."""
    file, stored = tmp_path / "a.toml", tmp_path / "experiment.toml"
    file.write_text(
        f'[[tasks]]\nname = "sst2"\n[radio]\nchannel = {{ name = "{name}", time_correlation = 0.5 }}\n{pilots}\n'
    )
    settings = read_settings(file)
    write_settings(settings, stored)
    assert differences(read_stored(stored), settings, {}) == []
    assert read_settings(stored, ["radio.pilots="]).radio.pilots == "derived"


@pytest.mark.parametrize("given", [{"coherence_symbols": 5000, "pilots": "perfect"}, {"scheme": "error_free"}])
def test_what_means_the_former_defaults_is_written_as_they_were(given):
    """So that the fingerprints of older runs are those of today."""
    settings = spelled_out(Settings.model_validate({"tasks": [{"name": "sst2"}], "radio": given}))
    found = settings.radio.model_dump(mode="json")
    assert (found["subcarrier_groups"], found["csi_error"], found["pilots"]) == (1, 0.0, "perfect")
    assert found["coherence_symbols"] in (5000, 20_000)
    assert next(iter(settings.radio.channel.options.items())) == ("delay_spread_s", 0.0)
