"""Channels from a file: what is read, what is refused in one line, and which round and block a draw takes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.io import savemat

from airpfed import testing
from airpfed.air.channels import file as channel_file
from airpfed.air.channels.fading import rayleigh_fading, rician_fading
from airpfed.air.channels.file import (
    blocks_of_file,
    channel_arrays,
    file_channels,
    load_channel_file,
    save_channel_file,
)
from airpfed.air.network import ChannelSite, Network, estimate_channels
from airpfed.core.errors import UserError

ROUNDS, BLOCKS, ANTENNAS, DEVICES = 3, 4, 8, 3
GAIN = np.array([[1e-9, 2e-9, 3e-9], [4e-9, 5e-9, 6e-9]])
SITE = ChannelSite(
    stations=torch.zeros(2, 2, dtype=torch.float64),
    devices=torch.ones(3, 2, dtype=torch.float64),
    gain=torch.from_numpy(GAIN),
    antennas=4,
    seed=7,
    carrier_hz=3.5e9,
    bandwidth_hz=20e6,
    subcarriers=64,
    subcarrier_groups=2,
    coherence_s=1e-3,
)


def channels(rounds: int = ROUNDS, blocks: int = BLOCKS, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (rounds, blocks, ANTENNAS, DEVICES)
    normal = rng.standard_normal(shape) + 1j * rng.standard_normal(shape)
    return normal * np.sqrt(GAIN / 2).repeat(4, 0)


def save(folder: Path, ending: str = ".npz", **arrays: Any) -> str:
    path = folder / f"h{ending}"
    arrays = {"h": channels(), **arrays}
    np.savez(path, **arrays) if ending == ".npz" else savemat(path, arrays)
    return str(path)


def network_of(path: str, repeat: bool = False, **changes: Any) -> Network:
    return file_channels(ChannelSite(**{**vars(SITE), **changes}), path=path, repeat=repeat)


@pytest.mark.parametrize("ending", [".npz", ".mat"])
def test_a_round_reads_its_round_whatever_the_file(ending, tmp_path):
    network = network_of(save(tmp_path, ending, gain=GAIN))
    assert torch.equal(network.gain, SITE.gain) and torch.equal(network.scattered, SITE.gain)
    for t in (1, 2, 3):
        h, los = network.channel_model(7, t, range(1, 3))
        assert np.array_equal(h.numpy(), channels()[t - 1, 1:3]) and not los.any() and los.shape == h.shape


def test_gains_are_measured_where_the_file_has_none(tmp_path):
    network = network_of(save(tmp_path))
    expected = (np.abs(channels()) ** 2).reshape(ROUNDS, BLOCKS, 2, 4, DEVICES).mean((0, 1, 3))
    np.testing.assert_allclose(network.gain.numpy(), expected, rtol=1e-12)
    assert bool(network.stations.isnan().all()) and bool(network.devices.isnan().all())


def test_arrays_in_another_form_are_the_same_channels(tmp_path):
    expected = network_of(save(tmp_path)).channel_model(7, 2, range(4))[0]
    assert isinstance(load_channel_file(str(tmp_path / "h.npz")).h, np.memmap)
    np.savez_compressed(tmp_path / "small.npz", h=channels())
    np.savez(tmp_path / "fortran.npz", other=np.zeros(3), h=np.asfortranarray(channels()))
    for name in ("small", "fortran"):
        assert torch.equal(network_of(str(tmp_path / f"{name}.npz")).channel_model(7, 2, range(4))[0], expected)
    np.savez(tmp_path / "single.npz", h=channels().astype(np.complex64))
    h = network_of(str(tmp_path / "single.npz")).channel_model(7, 2, range(4))[0]
    assert h.dtype == torch.complex128
    torch.testing.assert_close(h, expected, rtol=1e-6, atol=0)


def test_matlab_drops_last_dimensions_of_one(tmp_path):
    h = channels()[:, :, :, :1]
    savemat(tmp_path / "h.mat", {"h": h[..., 0], "gain": GAIN[:1, :1]})
    site = {"stations": SITE.stations[:1], "gain": SITE.gain[:1, :1], "devices": SITE.devices[:1], "antennas": 8}
    assert np.array_equal(network_of(str(tmp_path / "h.mat"), **site).channel_model(7, 1, range(4))[0].numpy(), h[0])


def test_a_vector_of_gains_is_for_one_station(tmp_path):
    site = {"stations": SITE.stations[:1], "gain": SITE.gain[:1], "antennas": 8}
    for ending in (".npz", ".mat"):
        assert network_of(save(tmp_path, ending, gain=GAIN[0]), **site).gain.tolist() == [GAIN[0].tolist()]
    with pytest.raises(UserError, match=r"gain has the shape \(3,\); should be \(stations, devices\) = \(2, 3\)$"):
        network_of(save(tmp_path, gain=GAIN[0]))


def test_studies_take_rounds_first_for_their_draws(tmp_path):
    path, h = save(tmp_path), channels()
    draws = network_of(path).channel_model(7, 0, range(7))[0].numpy()
    assert np.array_equal(draws, [h[0, 0], h[1, 0], h[2, 0], h[0, 1], h[1, 1], h[2, 1], h[0, 2]])
    assert np.array_equal(network_of(path, names=("drop", 3)).channel_model(7, 0, range(2))[0].numpy(), draws[2:4])
    with pytest.raises(UserError, match=r"h has 3 rounds of 4 blocks, and draw 13 is beyond these 12"):
        network_of(path, names=("drop", 13)).channel_model(7, 0, range(1))


def test_beyond_the_end_a_file_is_refused_or_repeated(tmp_path):
    path, h = save(tmp_path), channels()
    with pytest.raises(UserError, match="h has 3 rounds of 4 blocks, and round 4 needs one of its own; a longer file"):
        network_of(path).channel_model(7, 4, range(1))
    with pytest.raises(UserError, match="h has 3 rounds of 4 blocks, and round 1 needs 6; a longer file"):
        network_of(path).channel_model(7, 1, range(4, 6))
    repeated = network_of(path, repeat=True)
    assert np.array_equal(repeated.channel_model(7, 5, range(3, 6))[0].numpy(), h[1][[3, 0, 1]])
    assert np.array_equal(repeated.channel_model(7, 0, range(13))[0][12].numpy(), h[0, 0])


def test_another_seed_reads_random_rounds(tmp_path):
    network = network_of(save(tmp_path))
    rounds = {
        int(np.argmax([np.array_equal(network.channel_model(seed, 1, range(4))[0].numpy(), h) for h in channels()]))
        for seed in range(20, 40)
    }
    assert rounds == {0, 1, 2}


def test_it_keeps_the_contract_of_channels(tmp_path):
    rng = np.random.default_rng(1)
    h = 1e-5 * (rng.standard_normal((40, 12, 4, 4)) + 1j * rng.standard_normal((40, 12, 4, 4)))
    np.savez(tmp_path / "h.npz", h=h)
    report = testing.check_channel("file", path=str(tmp_path / "h.npz"))
    assert report.ok, str(report)


def test_blocks_are_the_file_s(tmp_path):
    assert blocks_of_file(20e6, 64, path=save(tmp_path)) == (None, None)
    given = save(tmp_path, subcarrier_groups=np.array(2), coherence_s=np.array(2 * 123 / 20e6))
    assert blocks_of_file(20e6, 64, path=given) == (2, 123)
    assert blocks_of_file(20e6, 64, path=save(tmp_path, subcarrier_groups=np.array(2))) == (2, None)


def test_a_time_is_rounded_to_uses(tmp_path):
    path = save(tmp_path, subcarrier_groups=np.array(2), coherence_s=np.array(1e-3 / 3))
    groups, length = blocks_of_file(20e6, 64, path=path)
    network_of(path, coherence_s=groups * length / 20e6)
    with pytest.raises(UserError, match="coherence_s"):
        network_of(path, coherence_s=groups * (length + 1) / 20e6)


# What is refused


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"subcarrier_groups": np.array(3)}, "subcarrier_groups = 3 should divide radio.subcarriers = 64"),
        ({"subcarrier_groups": np.array(0)}, "subcarrier_groups should be a number above 0"),
        ({"coherence_s": np.array(np.nan)}, "coherence_s should be a number above 0"),
        ({"coherence_s": np.array([])}, "coherence_s should be a number above 0"),
        ({"coherence_s": np.array("1 ms")}, "coherence_s should be a number above 0"),
        ({"coherence_s": np.array([1e-3, 2e-3])}, "coherence_s should be a number above 0"),
        ({"coherence_s": np.array(1e14)}, "coherence_s gives blocks of 2e+21 uses; should be at most 1e+12"),
    ],
)
def test_numbers_that_give_no_blocks_are_one_line(arrays, words, tmp_path):
    path = save(tmp_path, **arrays)
    with pytest.raises(UserError) as caught:
        blocks_of_file(20e6, 64, path=path)
    assert str(caught.value).startswith(f"radio.channel.path: {path}: ") and words in str(caught.value)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "real": ({"h": channels().real}, "h is float64; should be complex amplitudes"),
    "dimensions": ({"h": channels()[0]}, "h has the shape (4, 8, 3); should be (rounds, blocks, antennas, devices)"),
    "empty": ({"h": channels()[:0]}, "h has the shape (0, 4, 8, 3); should be"),
    "NaN": ({"h": np.where(np.arange(3)[:, None, None, None] == 1, np.nan, channels())}, "NaN in round 2 of 3"),
    "antennas": ({"h": channels()[:, :, :6]}, "h is for 6 antennas, and the settings have 8 (2 stations of radio."),
    "devices": ({"h": channels()[..., :2]}, "h is for 2 devices, and the tasks have 3"),
    "silent": ({"h": channels() * [1, 0, 1]}, "device 1 has no channel but 0"),
    "normalised": ({"h": channels() / GAIN.repeat(4, 0) ** 0.5}, "dB, above that of free space over 0.1 m (-23.3 dB)"),
    "vanishing": ({"h": channels() * 1e-150}, "device 0 has no channel but 0, or less than 1e-100"),
    "a gain too high": ({"gain": GAIN * [1, 1e6, 1]}, "the mean of gain is"),
    "a gain too low": ({"gain": GAIN * [1, 1e-6, 1]}, "h of device 1 has a mean power of"),
    "a faint device": ({"gain": GAIN, "h": channels() * [1, 1, 1e-3]}, "h of device 2 has a mean power of"),
    "a line of sight of amplitude 1": ({"los": np.ones((8, 3), complex)}, "los of device 0 has a mean power of"),
    "a scattered power of 1": ({"scattered": np.ones((2, 3))}, "scattered of device 0 has a mean power of 3.0 dB"),
    "a carrier as text": ({"carrier_hz": np.array("3.5 GHz")}, "carrier_hz should be a number above 0"),
    "an empty carrier": ({"carrier_hz": np.zeros((0, 0))}, "carrier_hz should be a number above 0"),
    "a complex carrier": ({"carrier_hz": np.array(3.5e9 + 0j)}, "carrier_hz should be a number above 0"),
    "a date as bandwidth": ({"bandwidth_hz": np.array("2026-01-01", dtype="datetime64[D]")}, "bandwidth_hz should be"),
    "scale": ({"h": channels() * 1e4, "gain": GAIN}, "h has a mean power of -4.3 dB, and the mean of gain is -84.6 dB"),
    "decibels": ({"gain": 10 * np.log10(GAIN)}, "gain should hold linear power gains, finite and not below 0"),
    "gain of NaN": ({"gain": GAIN * np.nan}, "gain should hold linear power gains, finite"),
    "los": ({"los": channels()[0]}, "los is complex128 (4, 8, 3); should be finite, complex and of shape (8, 3) or"),
    "positions": ({"devices": np.zeros((3, 3))}, "devices has the shape (3, 3); should be (3, 2), metres"),
    "band": ({"bandwidth_hz": np.array(1e6)}, "bandwidth_hz is 1e+06 in the file and 2e+07 in the settings"),
    "objects": ({"h": np.array([[{}]])}, "cannot be read as .npz"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_is_wrong_is_said_in_one_line(fault, tmp_path):
    arrays, words = WRONG[fault]
    path = save(tmp_path, **arrays)
    with pytest.raises(UserError) as caught:
        network_of(path)
    assert str(caught.value).startswith(f"radio.channel.path: {path}: ") and words in str(caught.value)
    assert "\n" not in str(caught.value)


def not_there(path: Path) -> None:
    pass


FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "missing": ("h.npz", not_there, "cannot be read: No such file"),
    "folder": ("h.npz", lambda path: path.mkdir(), "cannot be read as .npz: "),
    "ending": ("h.npy", lambda path: np.save(path, channels()), "should be a file that ends in .npz or .mat"),
    "text": ("h.npz", lambda path: path.write_text("h"), "cannot be read as .npz: "),
    "one array": ("h.npz", lambda path: path.write_bytes(one_array(path)), "cannot be read as .npz: "),
    "cut": ("h.npz", lambda path: path.write_bytes(zip_bytes(path)[:-100]), "cannot be read as .npz: "),
    "matlab": ("h.mat", lambda path: path.write_bytes(b"MATLAB 5.0" + bytes(200)), "cannot be read as .mat: "),
    "hdf5": ("h.mat", lambda path: path.write_bytes(HDF5), "a file of MATLAB's version 7.3; save it with '-v7'"),
    "no h": ("h.npz", lambda path: np.savez(path, H=channels(), gain=GAIN), "no key h, the channels; it holds H, gain"),
    "no h in .mat": ("h.mat", lambda path: savemat(path, {"H": GAIN}), "has no key h, the channels; it holds H"),
}
HDF5 = b"MATLAB 7.3 MAT-file".ljust(124, b" ") + b"\x00\x02IM" + bytes(400)


def one_array(path: Path) -> bytes:
    np.save(path.with_suffix(".npy"), channels())
    return path.with_suffix(".npy").read_bytes()


def zip_bytes(path: Path) -> bytes:
    np.savez(path, h=channels())
    return path.read_bytes()


@pytest.mark.parametrize("fault", FILES)
def test_what_is_no_channel_file_is_one_line(fault, tmp_path):
    name, write, words = FILES[fault]
    write(tmp_path / name)
    with pytest.raises(UserError) as caught:
        network_of(str(tmp_path / name))
    assert words in str(caught.value) and "\n" not in str(caught.value), str(caught.value)


def test_normalised_channels_are_taken_with_their_gain(tmp_path):
    h = channels() / GAIN.repeat(4, 0) ** 0.5
    network = network_of(save(tmp_path, h=h, gain=np.ones((2, 3))))
    assert bool((network.gain == 1).all())


def test_a_changed_file_is_read_again(tmp_path):
    path = save(tmp_path)
    before = network_of(path).channel_model(7, 1, range(1))[0]
    save(tmp_path, h=channels(ROUNDS + 1, seed=1))
    assert not torch.equal(network_of(path).channel_model(7, 1, range(1))[0], before)
    assert channel_file._load.cache_info().maxsize == 2  # only a few large files stay mapped


# What is written


@pytest.mark.parametrize("ending", [".npz", ".mat"])
@pytest.mark.parametrize("model", [rayleigh_fading, rician_fading], ids=lambda model: model.__name__)
def test_a_written_file_gives_back_channels_and_estimates(model, ending, tmp_path):
    """Bit for bit, with the line of sight that needs no estimation; a file without it would give other estimates."""
    network = model(SITE)
    save_channel_file(tmp_path / f"h{ending}", channel_arrays(network, 7, 2, 5))
    copy = network_of(str(tmp_path / f"h{ending}"))
    for t in (1, 2):
        draws = [estimate_channels(each, 0.2, 7, t, range(5)) for each in (copy, network)]
        assert all(torch.equal(*pair) for pair in zip(*draws, strict=True))
    assert torch.equal(copy.gain, network.gain) and torch.equal(copy.devices, network.devices)
    arrays = channel_arrays(network, 7, 2, 5)
    assert ("los" in arrays) == ("scattered" in arrays) == (model is rician_fading)


def test_the_scattered_power_is_what_a_line_of_sight_leaves(tmp_path):
    los = np.sqrt(GAIN / 4).repeat(4, 0) * np.exp(1j * np.arange(3))
    network = network_of(save(tmp_path, gain=GAIN, los=los))
    np.testing.assert_allclose(network.scattered.numpy(), 0.75 * GAIN, rtol=1e-12)
    assert np.array_equal(network.channel_model(7, 2, range(2))[1].numpy(), np.broadcast_to(los, (2, 8, 3)))
