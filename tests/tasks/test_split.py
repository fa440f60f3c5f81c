"""Splits are disjoint and fixed by the seed; shares hold their sizes, their skew and every sample at most once."""

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from airpfed.core.errors import UserError
from airpfed.tasks.sample import Sample
from airpfed.tasks.split import Samples, Shares, device_sizes, share_samples, split_samples

COLUMN = {"split": "column", "split_options": {"column": "who"}}
SHARES = Shares(devices=6, samples_per_device=40, dev_samples=10, test_samples=20)


def pool(count: int, classes: int = 4) -> Samples:
    return tuple(Sample(f"text {i}", f" {i % classes}", i % classes, f"d{i % 3}") for i in range(count))


def check_dealt(devices: tuple[Samples, ...], samples: Samples) -> None:
    dealt = [sample for device in devices for sample in device]
    assert all(devices) and len(set(dealt)) == len(dealt) and set(dealt) <= set(samples)


def skew(devices: tuple[Samples, ...]) -> float:
    """Mean over the devices of the share of a device's commonest class."""
    tops = [Counter(s.label for s in device).most_common(1)[0][1] / len(device) for device in devices]
    return sum(tops) / len(tops)


def test_split_is_disjoint_and_complete() -> None:
    samples = pool(100)
    train, dev, test = split_samples(samples, 10, 20, 1, "a")
    assert (len(train), len(dev), len(test)) == (70, 10, 20)
    assert set(train) | set(dev) | set(test) == set(samples)


def test_split_is_fixed_by_seed_and_name() -> None:
    samples = pool(100)
    assert split_samples(samples, 10, 20, 1, "a") == split_samples(samples, 10, 20, 1, "a")
    assert split_samples(samples, 10, 20, 1, "a")[2] != split_samples(samples, 10, 20, 2, "a")[2]
    assert split_samples(samples, 10, 20, 1, "a")[2] != split_samples(samples, 10, 20, 1, "b")[2]


def test_test_set_does_not_depend_on_dev_size() -> None:
    assert split_samples(pool(100), 10, 20, 1, "a")[2] == split_samples(pool(100), 50, 20, 1, "a")[2]


def test_split_needs_a_training_sample() -> None:
    assert len(split_samples(pool(31), 10, 20, 1, "a")[0]) == 1
    with pytest.raises(UserError, match=r"^tasks.a: .*there are 30 distinct samples$"):
        split_samples(pool(30), 10, 20, 1, "a")


def people(sizes: list[int], classes: int = 3) -> Samples:
    """Samples of people with so many rows each."""
    return tuple(
        Sample(f"text {p} {i}", " x", (p + i) % classes, group=f"person {p}")
        for p, n in enumerate(sizes)
        for i in range(n)
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [[5] * 20, [1] * 100, [1, 40, 2, 30, 5, 9, 3, 10, 4, 6]])
def test_nobody_is_on_two_sides_of_a_split(sizes: list[int], seed: int) -> None:
    """Dev and test have their sizes exactly; only rows of a person who would exceed them are in none."""
    samples = people(sizes)
    train, dev, test = split_samples(samples, 10, 20, seed, "a")
    who = [{sample.group for sample in part} for part in (train, dev, test)]
    assert not (who[0] & who[1] or who[0] & who[2] or who[1] & who[2])
    assert (len(dev), len(test)) == (10, 20) and len(set(train) | set(dev) | set(test)) == len(train) + 30
    lost = set(samples) - set(train) - set(dev) - set(test)
    assert len({sample.group for sample in lost}) <= 2 and {sample.group for sample in lost} <= who[1] | who[2]
    assert sizes != [1] * 100 or not lost
    assert split_samples(samples, 10, 20, seed, "a") == (train, dev, test)
    assert split_samples(samples, 10, 20, seed + 9, "a")[2] != test


def test_too_few_people_are_counted() -> None:
    with pytest.raises(UserError, match=r"leave nothing to train on; there are 100 distinct samples of 2 groups$"):
        split_samples(people([50, 50]), 10, 20, 0, "a")


@pytest.mark.parametrize("counts", [[50, 30, 20], [90, 7, 3], [97, 2, 1], [34, 33, 33]])
def test_a_stratified_split_has_the_shares_of_all(counts: list[int]) -> None:
    """To the nearest sample, in every part; the parts are still random, disjoint and complete."""
    samples = tuple(Sample(f"text {c} {i}", " x", c) for c, n in enumerate(counts) for i in range(n))
    parts = split_samples(samples, 10, 20, 0, "a", stratify=True)
    assert [len(part) for part in parts] == [70, 10, 20] and set().union(*parts) == set(samples)
    for part in parts:
        shares = Counter(sample.label for sample in part)
        assert all(abs(shares[c] - n * len(part) / 100) < 2 for c, n in enumerate(counts))
    assert all(abs(Counter(s.label for s in parts[2])[c] - n / 5) < 1 for c, n in enumerate(counts))
    assert split_samples(samples, 10, 20, 1, "a", stratify=True)[2] != parts[2]
    labels = [sample.label for sample in parts[0]]
    assert labels != sorted(labels), "in random order"


@pytest.mark.parametrize("how", ["iid", "dirichlet", "column"])
@pytest.mark.parametrize("spread", ["equal", "lognormal"])
def test_shares_are_disjoint_and_fixed(how: str, spread: str) -> None:
    shares = replace(SHARES, split=how, sizes=spread, sizes_sigma=1.0)
    if how == "column":
        shares = replace(shares, **COLUMN, devices=3)
    dealt = share_samples(pool(400), shares, 1, "a")
    check_dealt(dealt, pool(400))
    assert len(dealt) == shares.devices
    assert dealt == share_samples(pool(400), shares, 1, "a")
    if (how, spread) != ("column", "equal"):  # nothing is random there
        assert dealt != share_samples(pool(400), shares, 2, "a")


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
def test_equal_sizes(how: str) -> None:
    assert [len(d) for d in share_samples(pool(400), replace(SHARES, split=how), 1, "a")] == [40] * 6


@pytest.mark.parametrize("how", ["iid", "dirichlet"])
@pytest.mark.parametrize("count", [6, 7, 100, 239])
@pytest.mark.parametrize("spread", ["equal", "lognormal"])
def test_sizes_shrink_to_what_is_there(how: str, count: int, spread: str) -> None:
    shares = replace(SHARES, split=how, sizes=spread, sizes_sigma=1.5)
    dealt = share_samples(pool(count), shares, 3, "a")
    check_dealt(dealt, pool(count))
    if spread == "equal":
        assert {len(device) for device in dealt} == {min(40, count // 6)}


def test_lognormal_sizes_keep_the_mean_and_the_spread() -> None:
    shares, n = replace(SHARES, samples_per_device=1000, sizes="lognormal", sizes_sigma=0.5), 4000
    drawn = device_sizes(shares, n, 1, "a") / 1000
    variance = math.exp(0.25) - 1
    assert abs(drawn.mean() - 1) < 5 * math.sqrt(variance / n)
    assert abs(np.log(drawn).std() - 0.5) < 5 * 0.5 / math.sqrt(2 * n)
    assert (device_sizes(replace(shares, sizes_sigma=0.0), 5, 1, "a") == 1000).all()
    assert (device_sizes(replace(shares, samples_per_device=1, sizes_sigma=3.0), 50, 1, "a") >= 1).all()


def test_dirichlet_skews_by_alpha() -> None:
    samples, shares = pool(4000), replace(SHARES, devices=20, samples_per_device=50, split="dirichlet")
    skews = [
        skew(share_samples(samples, replace(shares, split_options={"alpha": a}), 1, "a"))
        for a in (1e-3, 0.1, 1.0, 100.0)
    ]
    assert skews == sorted(skews, reverse=True)
    assert skews[0] > 0.99 and skews[1] > 0.7
    # In the limit a device is an IID draw; the commonest of four classes takes 0.34 of 50 draws, give or take 0.045.
    even = skew(share_samples(samples, replace(shares, split="iid"), 1, "a"))
    assert abs(skews[3] - even) < 5 * 0.045 * math.sqrt(2 / 20) and skews[3] < 0.42


def test_dirichlet_tends_to_the_shares_of_the_pool() -> None:
    samples = tuple(Sample(f"t{i}", " x", int(i % 10 == 0)) for i in range(20_000))
    shares = replace(SHARES, devices=40, samples_per_device=100, split="dirichlet", split_options={"alpha": 1e6})
    rare = [sum(s.label for s in device) / 100 for device in share_samples(samples, shares, 1, "a")]
    assert abs(np.mean(rare) - 0.1) < 5 * math.sqrt(0.09 / 4000)


def test_dirichlet_deals_out_the_last_sample() -> None:
    shares = replace(SHARES, devices=5, samples_per_device=20, split="dirichlet", split_options={"alpha": 1e-3})
    check_dealt(share_samples(pool(100), shares, 1, "a"), pool(100))
    assert sum(map(len, share_samples(pool(100), shares, 1, "a"))) == 100


def test_column_gives_each_value_a_device() -> None:
    for devices in (0, 3):
        dealt = share_samples(pool(400), replace(SHARES, **COLUMN, devices=devices), 1, "a")
        assert [{s.device for s in device} for device in dealt] == [{"d0"}, {"d1"}, {"d2"}]
        assert [len(device) for device in dealt] == [40] * 3


@pytest.mark.parametrize(
    ("shares", "samples", "named"),
    [
        (replace(SHARES, devices=4, **COLUMN), pool(30), r"devices = 4: the device column has 3 values"),
        (replace(SHARES, **COLUMN, devices=0), (Sample("t", " a", 0),), r"a sample has no value in the column who"),
        (replace(SHARES, split="dirichlet"), (Sample("t", " a"),) * 9, r'split = "dirichlet": needs classes'),
        (replace(SHARES, devices=31), pool(30), r"devices = 31: should be from 1 to 30"),
        (replace(SHARES, devices=31, split="dirichlet"), pool(30), r"devices = 31: should be from 1 to 30"),
        (replace(SHARES, devices=0), pool(30), r"devices = 0"),
    ],
)
def test_errors_name_the_setting(shares: Shares, samples: Samples, named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        share_samples(samples, shares, 1, "a")
    assert "\n" not in str(caught.value) and "tasks.a" in str(caught.value)
