"""Named random streams."""

import torch

from airpfed.core.rng import numpy_stream, stream


def draw(*names: str | int, seed: int = 0) -> torch.Tensor:
    return torch.rand(8, generator=stream(seed, *names))


def test_a_stream_is_a_function_of_seed_and_names():
    assert torch.equal(draw("fading", 3), draw("fading", 3))


def test_seed_name_and_number_each_change_the_stream():
    first = draw("fading", 3)
    for other in (draw("fading", 3, seed=1), draw("noise", 3), draw("fading", 4), draw("fading", 3, 0), draw("fading")):
        assert not torch.equal(first, other)


def test_a_draw_under_one_name_does_not_shift_another():
    before = draw("noise", 1)
    stream(0, "fading", 1)
    torch.rand(1000)
    assert torch.equal(draw("noise", 1), before)


def test_streams_are_the_same_on_every_machine_and_run():
    """Fixed numbers: a change of the digest or the generator would silently change all published results."""
    assert stream(0, "fading", 1).initial_seed() == 8475882146200515175
    assert numpy_stream(0, "split", "sst2").integers(1 << 30, size=2).tolist() == [265695078, 40137052]


def test_streams_of_consecutive_rounds_are_uncorrelated():
    draws = torch.stack([torch.randn(200, generator=stream(0, "noise", t), dtype=torch.float64) for t in range(60)])
    products = draws @ draws.T / 200
    off = products[~torch.eye(60, dtype=torch.bool)] * 200**0.5
    assert off.abs().max() < 5
