"""Results of the benchmarks as markdown, written between the markers of a page."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Result = dict[str, Any]


def spread(row: Result) -> str:
    """Median and quartiles."""
    return f"{row['median']:.3g} ({row['q1']:.3g} to {row['q3']:.3g})"


def interval(row: Result) -> str:
    """Ratio with its 95 % interval."""
    return f"{row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def verdict(value: float, goal: float) -> str:
    """The goal and whether the value meets it."""
    return f"<= {goal:g}: {'met' if value <= goal else 'not met'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below a head as markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(line.replace("| --- ", "|---").replace("---|", "---|") for line in lines)


VARIANT_COLUMNS = ("wall s", "CPU s", "wall ratio to PEFT", "CPU ratio to PEFT", "peak MB")


def variant_rows(variants: Result, names: dict[str, str]) -> list[list[str]]:
    """Rows of variants: seconds, ratios, memory."""
    rows = []
    for key, name in names.items():
        row = variants[key]
        ratios = [interval(row[f"{clock}_ratio"]) if f"{clock}_ratio" in row else "1" for clock in ("wall", "cpu")]
        rows.append([name, spread(row["wall"]), spread(row["cpu"]), *ratios, f"{row['peak_mb']:.0f}"])
    return rows


def against_peft(case: Result, title: Callable[[Result], str]) -> str:
    """A table and a line of goals for every row that was compared with PEFT."""
    parts = []
    for row in case["rows"]:
        names = {
            "gradients": "our gradients",
            "round": "our round",
            "peft": f"PEFT step, micro-batch {row['micro_batch']}",
        }
        plain = row["variants"]["round"].get("to_all_logits")
        if plain:
            names["all_logits"] = "the same with the logits of every position"
        goal = verdict(row["variants"]["round"]["wall_ratio"]["median"], row["goal"])
        more = ""
        if "padded" in row:
            more = f" The first round has {row['tokens']:,} tokens, PEFT's with padding {row['padded']:,}."
        if "fill" in row and row["fill"]["cpu"] > 0.01:
            more += (
                f" Filling the frozen-prefix cache once took {row['fill']['cpu']:.3g} CPU s; with it, a run of "
                f"{row['rounds']} rounds costs {row['cpu_ratio_of_a_run']:.3f} of PEFT's CPU seconds."
            )
        parts += [
            f"{title(row)}: {row['variants']['round']['turns']} pairs.",
            table(["", *VARIANT_COLUMNS], variant_rows(row["variants"], names)),
            f"Round over PEFT, wall, {goal}."
            + (
                f" Over PEFT with all logits {interval(plain)}, {verdict(plain['median'], row['goal'])}."
                if plain
                else ""
            )
            + f" Gradients differ by {row['difference']['whole']:.1e} (relative; "
            f"the worst factor {row['difference']['worst_factor']:.1e}).{more}",
        ]
    return "\n\n".join(parts)


def full_length(case: Result) -> str:
    return against_peft(case, lambda r: f"{r['base']}, {r['devices']} devices x {r['batch']} x {r['tokens']} tokens")


def real_data(case: Result) -> str:
    return against_peft(case, lambda r: f"Data of `{case['file']}`, adapters in {r['adapters']}")


def compiled(case: Result) -> str:
    """The gain of compiling, and the cost of its first pass."""
    variant = case["variants"]["compiled"]
    return (
        f"{case['base']}, {case['devices']} devices x {case['batch']} x {case['tokens']} tokens, {variant['turns']} "
        f"pairs: compiled layers take {interval(variant['wall_ratio'])} of the wall time, "
        f"{interval(variant['cpu_ratio'])} of the CPU seconds; "
        f"the first pass, which compiles them, takes {case['first']['wall']:.3g} s."
    )


def overhead(case: Result) -> str:
    """Share of a round outside the model's passes, and the phases."""
    share = case["share"]
    phases = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in case["phases"].items() if seconds)
    return (
        f"{case['base']}, {case['devices']} devices x {case['batch']} x {case['tokens']} tokens, "
        f"{case['antennas']} antennas, {case['blocks']} coherence blocks a round, design {case['design']}: outside "
        f"the model's forward and backward passes {100 * share['median']:.1f} % of a round's time, "
        f"{verdict(share['median'], case['goal'])}. "
        f"Phases: {phases}."
    )


def start(case: Result) -> str:
    """Seconds since a process began."""
    rows = []
    for name, row in case["wall"].items():
        goal = case["goals"].get(name)
        cpu = spread(case["cpu"][name]) if name in case["cpu"] else ""
        rows.append([name, spread(row), cpu, verdict(row["median"], goal) if goal else ""])
    return f"`{case['file']}`, {case['turns']} processes each.\n\n" + table(["", "wall s", "CPU s", "goal, s"], rows)


def scale(case: Result) -> str:
    """A line for each number of devices, and the goals."""
    head = ["base", "devices", "tokens", "R_s + R_p", "entries a device", "wall ms a device", "CPU ms a device",
            "of it in the air", "peak MB"]  # fmt: skip
    rows = []
    for row in case["rows"]:
        begin = [row["base"], f"{row['devices']:,}", str(row["tokens"]), f"{row['rank']} + {row['rank']}"]
        if "failed" in row:
            rows.append([*begin, f"failed: {row['failed']}", *[""] * 4])
            continue
        share = median(turn["phases"]["air"] / turn["wall"] for turn in row["rounds"])
        times = [f"{row[f'{clock}_ms_a_device']:.2f}" for clock in ("wall", "cpu")]
        rows.append([*begin, f"{row['entries']:,}", *times, f"{100 * share:.0f} %", f"{row['peak_mb']:.0f}"])
    return "\n\n".join([table(head, rows), *scale_goals(case["rows"])])


def scale_goals(rows: Sequence[Result]) -> list[str]:
    """Lines on the time for each device, and on the peak memory with the largest base."""
    done = [row for row in rows if "failed" not in row]
    small = [row for row in done if row["rank"] == rows[0]["rank"]]
    lines = []
    if len(small) > 1:
        ratios = {c: small[-1][f"{c}_ms_a_device"] / small[0][f"{c}_ms_a_device"] for c in ("wall", "cpu")}
        lines.append(
            f"Time a device at {small[-1]['devices']:,} devices over that at {small[0]['devices']:,}: wall "
            f"{ratios['wall']:.2f}, CPU {ratios['cpu']:.2f}; wall {verdict(ratios['wall'], 1.2)}."
        )
    lines += [
        f"Peak memory, {row['base']}, {row['devices']:,} devices: {row['peak_mb']:.0f} MB, "
        f"{verdict(row['peak_mb'], 6000)}."
        for row in done
        if row["rank"] != rows[0]["rank"]
    ]
    return lines


def peers(case: Result) -> str:
    """Every engine at every number of devices."""
    parts = []
    for row in case["rows"]:
        title = (
            f"{row['base']}, {row['devices']} devices x {row['batch']} x {row['tokens']} tokens, {row['turns']} turns."
        )
        lines = []
        for name, variant in row["variants"].items():
            ratios = [interval(variant[f"{c}_ratio"]) if f"{c}_ratio" in variant else "1" for c in ("wall", "cpu")]
            difference = row["differences"].get(name)
            lines.append([name, spread(variant["wall"]), spread(variant["cpu"]), *ratios,
                          "" if difference is None else f"{difference:.1e}"])  # fmt: skip
        head = ["", "wall s a round", "CPU s a round", "wall ratio to ours", "CPU ratio to ours", "gradient differs by"]
        parts += [title, table(head, lines), *(f"{note}." for note in row["notes"])]
    return "\n\n".join(parts)


RENDER: dict[str, Callable[[Result], str]] = {
    "full_length": full_length, "real_data": real_data, "compiled": compiled, "overhead": overhead, "start": start,
    "scale": scale, "peers": peers,
}  # fmt: skip


def section(case: Result) -> str:
    """A case's table with a line on machine, load, commit and time of the measurement."""
    machine = case["machine"]
    caption = (
        f"*{machine['cores']} cores ({machine['processor']}), {machine['threads']} threads, torch {machine['torch']}, "
        f"load before {case['load']:.1f}, commit {machine['commit']}, {machine['time']}"
        f"{', quick' if case['quick'] else ''}.*"
    )
    body = f"Failed: {case['failed']}." if "failed" in case else RENDER[case["case"]](case)
    return f"{caption}\n\n{body}"


def regenerate(page: Path, out: Path) -> None:
    """Write every result in `out` between its markers of the page; the page keeps all other results."""
    text = page.read_text(encoding="utf-8")
    for case in RENDER:
        file = out / f"{case}.json"
        if file.is_file():
            head, tail = around(text, "bench", case, page)
            text = f"{head}{section(json.loads(file.read_text(encoding='utf-8')))}{tail}"
    page.write_text(text, encoding="utf-8")


def around(text: str, kind: str, name: str, page: Path) -> tuple[str, str]:
    """The text before and after a table of a page, with its markers. Raises ValueError if there are none."""
    begin, end = f"<!-- {kind}: {name} -->\n", f"<!-- end: {name} -->"
    head, opened, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"{page}: has no markers {begin.strip()} and {end}")
    return f"{head}{begin}\n", f"\n\n{end}{tail}"
