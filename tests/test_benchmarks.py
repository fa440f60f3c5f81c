"""The harness of the benchmarks: what it says of times is right, and a quick run leaves JSON."""

import importlib
import json
import sys
import time
from argparse import Namespace
from mmap import mmap
from pathlib import Path

import central
import harness
import numpy as np
import once
import pytest
import speed
import tables
import torch
from cases import Options
from children import answer
from fleets import random_tokens
from harness import Spent, interleaved, quartiles, ratio, spent, summary
from rival import AIR, RIVAL, Trial, choose, crossing, parse


def test_variants_take_turns_and_warm_up_does_not_count() -> None:
    calls: list[tuple[str, int]] = []
    clock = iter(range(100))
    variants = {name: (lambda pair, name=name: calls.append((name, pair))) for name in ("A", "B")}
    turns = interleaved(variants, pairs=2, warm_up=1, cpu=lambda: float(next(clock)))
    assert calls == [("A", -1), ("B", -1), ("A", 0), ("B", 0), ("A", 1), ("B", 1)]
    assert {name: [one.cpu for one in own] for name, own in turns.items()} == {"A": [1.0, 1.0], "B": [1.0, 1.0]}


def test_quartiles_are_numpys() -> None:
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == {"q1": 2.0, "median": 3.0, "q3": 4.0}


def test_ratio_pairs_its_turns() -> None:
    """B drifts a hundredfold and A with it: pair by pair the ratio is exact, and so is its interval."""
    below = np.geomspace(1, 100, 15)
    found = ratio(list(1.1 * below), list(below))
    np.testing.assert_allclose([found.median, found.low, found.high], 1.1, rtol=1e-12)


def test_interval_of_the_ratio_covers_as_often_as_it_says() -> None:
    """95 % of intervals hold the true median, within five standard errors of 300 trials; and they are not wide."""
    rng, trials = np.random.default_rng(0), 300
    below = np.ones(15)
    found = [ratio(list(2 * np.exp(0.1 * rng.standard_normal(15))), list(below), seed) for seed in range(trials)]
    covered = np.mean([one.low <= 2 <= one.high for one in found])
    assert abs(covered - 0.95) < 5 * (0.95 * 0.05 / trials) ** 0.5
    # The median of 15 normal values has a standard error of about 1.25 sigma / sqrt(15).
    assert np.median([one.high - one.low for one in found]) < 2 * 2 * 1.96 * 1.25 * 0.1 / 15**0.5


def test_summary_holds_ratios_against_the_one_named() -> None:
    turns = {"a": [Spent(2.0, 3.0, 10.0), Spent(4.0, 6.0, 30.0)], "b": [Spent(1.0, 1.0, 5.0), Spent(2.0, 2.0, 5.0)]}
    found = summary(turns, against="b")
    assert found["a"]["wall_ratio"] == {"median": 2.0, "low": 2.0, "high": 2.0}
    assert found["a"]["cpu_ratio"] == {"median": 3.0, "low": 3.0, "high": 3.0}
    assert found["a"]["peak_mb"] == 30.0
    assert "wall_ratio" not in found["b"]


def test_a_turn_has_its_own_seconds_and_memory() -> None:
    """Sleep is wall time and no CPU; 200 MB that were let go are not in the next turn's peak."""
    asleep = spent(lambda: time.sleep(0.1))
    assert asleep.wall >= 0.1 > asleep.cpu
    large, small = spent(lambda: np.frombuffer(mmap(-1, 200_000_000), np.uint8).fill(1)), spent(lambda: None)
    if Path("/proc/self/clear_refs").exists():
        assert large.peak_mb > small.peak_mb + 150


def test_peft_s_gradient_is_ours_and_a_wrong_weight_shows(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, made = random_tokens(str(tiny_llama), 5, 2, 8, {})
    one = central.central(settings, made)
    for one.micro_batch in (0, 3):
        assert max(central.agreement(made, one).values()) < 1e-5
    weighted = central.samples_of

    def wrong(*words: object) -> list:
        (first, weight, classes), *rest = weighted(*words)
        return [(first, 1.02 * weight, classes), *rest]

    monkeypatch.setattr(central, "samples_of", wrong)
    assert min(central.agreement(made, one).values()) > 1e-4


def test_random_samples_are_full_and_fixed(tiny_bert: Path) -> None:
    sections = {"adapters": {"target_modules": ("query", "value")}}
    _, made = random_tokens(str(tiny_bert), 6, 2, 8, sections)
    assert made.clients.task_of.tolist() == [0, 1, 2, 2, 3, 3]
    assert {len(sample.ids) for shard in made.clients.shards for sample in shard} == {8}
    assert made.clients.shards == random_tokens(str(tiny_bert), 6, 2, 8, sections)[1].clients.shards


def test_quick_writes_json_and_tables(
    tmp_path: Path, tiny_llama: Path, llama_settings: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "".join(f"{case}\n<!-- bench: {case} -->\nold {case}\n<!-- end: {case} -->\n" for case in tables.RENDER)
    )
    out, cases = tmp_path / "out", ["full_length", "real_data", "overhead"]
    words = ["--quick", "--out", str(out), "--docs", str(page), "--cases", ",".join(cases), "--base", str(tiny_llama)]
    assert speed.main([*words, "--file", str(llama_settings)]) == 0, capsys.readouterr().out
    for case in cases:
        found = json.loads((out / f"{case}.json").read_text())
        assert found["quick"] and found["machine"]["torch"] == torch.__version__
        assert f"old {case}" not in page.read_text()
        for row in found.get("rows", []):
            assert max(row["difference"].values()) < 1e-5
            extra = {"all_logits"} if case == "real_data" else set()
            assert set(row["variants"]) == {"round", "peft", "gradients"} | extra
            assert row["variants"]["gradients"]["wall"]["median"] < row["variants"]["round"]["wall"]["median"]
    assert 0 < found["share"]["median"] < 1
    assert found["blocks"] == 50
    assert "old start" in page.read_text(), "what was not measured stays"


def test_children_count_devices_and_say_why_they_fail(tiny_llama: Path, llama_settings: Path) -> None:
    words = {"base": str(tiny_llama), "devices": 12, "tokens": 8, "rank": 1, "antennas": 4, "rounds": 2}
    found = once.scale(Namespace(**words))
    assert len(found["rounds"]) == 2 and 0 < found["built_mb"] <= found["peak_mb"]
    began = time.time()
    times = once.start(Namespace(file=llama_settings, set=[]))
    assert began < times["imported"] < times["built"] < times["first_gradient"] < time.time()
    options = Options(True, "", llama_settings, 1, 10, 0.05, 60.0)
    assert "failed" in answer(["scale", "--base", str(tiny_llama)], options), "50 MB are too few"


def test_scale_says_what_failed_and_whether_time_a_device_is_flat() -> None:
    done = {"base": "b", "tokens": 16, "entries": 9, "rounds": [{"wall": 1.0, "phases": {"air": 0.25}}]}
    row = done | {"devices": 100, "rank": 1, "wall_ms_a_device": 2.0, "cpu_ms_a_device": 1.0, "peak_mb": 500.0}
    more = row | {"devices": 1000, "wall_ms_a_device": 2.5}
    large = row | {"devices": 1000, "rank": 4, "peak_mb": 5999.0}
    failed = {"base": "b", "devices": 10_000, "tokens": 16, "rank": 1, "failed": "exit 1: no memory"}
    text = tables.scale({"rows": [row, more, failed, large]})
    assert "| 10,000 | 16 | 1 + 1 | failed: exit 1: no memory |" in text
    assert "25 %" in text
    assert "over that at 100: wall 1.25, CPU 1.00; wall <= 1.2: not met." in text
    assert "1,000 devices: 5999 MB, <= 6000: met." in text


def test_a_case_that_fails_is_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--quick", "--out", str(tmp_path), "--cases", "full_length", "--base", str(tmp_path / "nowhere")]
    assert speed.main(words) == 1
    assert "nowhere" in json.loads((tmp_path / "full_length.json").read_text())["failed"]


def test_a_page_without_markers_is_refused(tmp_path: Path) -> None:
    harness.keep(tmp_path, "scale", True, {"rows": []})
    (tmp_path / "page.md").write_text("nothing here\n")
    with pytest.raises(ValueError, match="bench: scale"):
        tables.regenerate(tmp_path / "page.md", tmp_path)


def test_peers_do_the_same_work(tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop with PEFT and the stacked pass; pfl and Flower are held to the same sum where they are installed."""
    monkeypatch.syspath_prepend(str(Path(harness.__file__).parent / "peers"))
    import work

    monkeypatch.setitem(work.METHOD["adapters"], "target_modules", ("query", "value"))
    here = work.world(str(tiny_bert), 3, 2, 8)
    wanted = work.ours(here, 0)
    assert work.difference(here, work.loop(here, 0), wanted) < 1e-5
    assert work.difference(here, work.loop(here, 1), wanted) > 1e-2, "another turn has other samples"


@pytest.mark.parametrize(
    ("name", "words", "rows"),
    [
        ("designs", "--seeds 1 --cells base error_free:10 mmse:10 --out {out}", ["| mmse:10 |", "| base, by seed |"]),
        ("claims", "--rounds 1 --snr 10", ["| 10 | mmse | estimated |"]),
        ("digital", "--devices 1 --seeds 1 --links mmse digital:4 --air-only", ["| 1 | 10 | digital:4 |"]),
        ("digital", "--devices 1 --seeds 1 --links mmse digital:4 --out {out}", ["| 1, 10 dB | digital:4 |"]),
        (
            "rival",
            "--devices 1 2 --snr 10 --seeds 2 --dev-seeds 1 --entries 300 --nmse 0.5 --air radio.design=mmse "
            "--rival radio.scheme=digital(bits=2,quantizer=eden) --out {out}",
            [
                "| 1 | 10 | over the air | radio.design=mmse | ",
                "| 2 | 10 | 0.5 | radio.design=mmse | ",
                "Crossing at 10",
            ],
        ),
        (
            "rival",
            "--devices 1 --snr 10 --seeds 1 --dev-seeds 1 --learning --air radio.design=mmse --rival "
            "radio.scheme=digital(bits=2,quantizer=eden) --set server.rounds=9 --out {out}",
            ["| 1 | 10 | rival | radio.scheme=digital(bits=2,quantizer=eden) | ", "| 1 | 10 | dev accuracy | "],
        ),
    ],
)
def test_links_are_compared(name, words, rows, small_settings, tmp_path, monkeypatch, capsys) -> None:
    """The commands behind tables of docs/, on two tiny tasks. Digital groups take less time than one after another."""
    monkeypatch.setattr(sys, "argv", [name, str(small_settings), *words.format(out=tmp_path / "out.jsonl").split()])
    importlib.import_module(name).main()
    out = capsys.readouterr().out
    lines = [next(line for line in out.splitlines() if line.startswith(row)) for row in rows]
    if "--air-only" in words:
        cells = lines[0].split("|")
        assert 0 < float(cells[7]) < float(cells[5])


def test_both_sides_of_the_rivalry_try_as_many_settings() -> None:
    assert len(set(AIR)) == len(set(RIVAL)) == len(AIR) == len(RIVAL)


def test_a_candidate_is_overrides_and_how_often_it_sends() -> None:
    assert parse("radio.design=mmse radio.access=concurrent x4") == (
        ["radio.design=mmse", "radio.access=concurrent"],
        4,
    )
    assert parse("radio.scheme=digital(bits=2, access=ofdma)") == (["radio.scheme=digital(bits=2, access=ofdma)"], 1)


def test_the_fastest_of_those_that_reach_the_target_is_chosen() -> None:
    """In the mean over dev seeds for an error; on every dev seed for an accuracy."""
    tried = {
        "fast": [Trial(1.0, 1.0, 0.2), Trial(1.0, 1.0, 0.4)],
        "middle": [Trial(2.0, 1.0, 0.05), Trial(2.0, 1.0, 0.15)],
        "slow": [Trial(3.0, 1.0, 0.01), Trial(3.0, 1.0, 0.01)],
    }
    assert [choose(tried, target) for target in (0.31, 0.11, 0.05, 0.001)] == ["fast", "middle", "slow", None]
    learned = {"fast": [Trial(1.0, 1.0, rounds=3), Trial(1.0, 1.0)], "slow": [Trial(3.0, 1.0, rounds=9)] * 2}
    assert choose(learned, None) == "slow"


def test_the_crossing_is_interpolated_and_has_an_interval() -> None:
    """Ratios of devices / 8 cross 1 at 8; seeds that scatter by a fifth move it by about as much."""
    exact = crossing([1, 4, 16, 64], [[n / 8] * 5 for n in (1, 4, 16, 64)])
    assert [float(text) for text in exact] == pytest.approx([8, 8, 8], rel=1e-3)
    factors = np.exp(0.2 * np.random.default_rng(0).standard_normal(9))
    middle, low, high = (float(t) for t in crossing([1, 4, 16, 64], [list(n / 8 * factors) for n in (1, 4, 16, 64)]))
    assert 5 < low < middle < high < 12
    assert crossing([1, 4], [[2.0, 3.0], [4.0, 5.0]])[0] == "under 1"
    assert crossing([1, 4], [[0.2, 0.3], [0.4, 0.5]])[0] == "over 4"
