"""Results as markdown, put between the markers of a page."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

Found = dict[str, Any]


def spread(row: Found) -> str:
    """Median and quartiles."""
    return f"{row['median']:.3g} ({row['q1']:.3g} to {row['q3']:.3g})"


def interval(row: Found) -> str:
    """Ratio with its 95 % interval."""
    return f"{row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


def verdict(value: float, goal: float) -> str:
    """The goal, and whether it is met."""
    return f"<= {goal:g}: {'met' if value <= goal else 'not met'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below a head, as markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]]
    return "\n".join(line.replace("| --- ", "|---").replace("---|", "---|") for line in lines)


COMPARED = ("wall s", "CPU s", "wall ratio to PEFT", "CPU ratio to PEFT", "peak MB")


def compared(variants: Found, names: dict[str, str]) -> list[list[str]]:
    """Rows of variants: seconds, ratios, memory."""
    rows = []
    for key, name in names.items():
        one = variants[key]
        ratios = [interval(one[f"{clock}_ratio"]) if f"{clock}_ratio" in one else "1" for clock in ("wall", "cpu")]
        rows.append([name, spread(one["wall"]), spread(one["cpu"]), *ratios, f"{one['peak_mb']:.0f}"])
    return rows


def of_peft(found: Found, title: Callable[[Found], str]) -> str:
    """A table and a line of goals for every row that was held against PEFT."""
    parts = []
    for row in found["rows"]:
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
            table(["", *COMPARED], compared(row["variants"], names)),
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


def full_length(found: Found) -> str:
    return of_peft(found, lambda r: f"{r['base']}, {r['devices']} devices x {r['batch']} x {r['tokens']} tokens")


def real_data(found: Found) -> str:
    return of_peft(found, lambda r: f"Data of `{found['file']}`, adapters in {r['adapters']}")


def compiled(found: Found) -> str:
    """What compiling gains, and what its first pass costs."""
    one = found["variants"]["compiled"]
    return (
        f"{found['base']}, {found['devices']} devices x {found['batch']} x {found['tokens']} tokens, {one['turns']} "
        f"pairs: compiled layers take {interval(one['wall_ratio'])} of the wall time, {interval(one['cpu_ratio'])} of "
        f"the CPU seconds; the first pass, which compiles them, takes {found['first']['wall']:.3g} s."
    )


def overhead(found: Found) -> str:
    """Share of a round outside the model's passes, and the phases."""
    share = found["share"]
    phases = ", ".join(f"{name} {seconds:.3g} s" for name, seconds in found["phases"].items() if seconds)
    return (
        f"{found['base']}, {found['devices']} devices x {found['batch']} x {found['tokens']} tokens, "
        f"{found['antennas']} antennas, {found['blocks']} coherence blocks a round, design {found['design']}: outside "
        f"the model's forward and backward passes {100 * share['median']:.1f} % of a round's time, "
        f"{verdict(share['median'], found['goal'])}. "
        f"Phases: {phases}."
    )


def start(found: Found) -> str:
    """Seconds since a process began."""
    rows = []
    for name, row in found["wall"].items():
        goal = found["goals"].get(name)
        cpu = spread(found["cpu"][name]) if name in found["cpu"] else ""
        rows.append([name, spread(row), cpu, verdict(row["median"], goal) if goal else ""])
    return f"`{found['file']}`, {found['turns']} processes each.\n\n" + table(["", "wall s", "CPU s", "goal, s"], rows)


def scale(found: Found) -> str:
    """A line for every number of devices, and what it says of the goals."""
    head = ["base", "devices", "tokens", "R_s + R_p", "entries a device", "wall ms a device", "CPU ms a device",
            "of it in the air", "peak MB"]  # fmt: skip
    rows = []
    for row in found["rows"]:
        begin = [row["base"], f"{row['devices']:,}", str(row["tokens"]), f"{row['rank']} + {row['rank']}"]
        if "failed" in row:
            rows.append([*begin, f"failed: {row['failed']}", *[""] * 4])
            continue
        share = median(one["phases"]["air"] / one["wall"] for one in row["rounds"])
        times = [f"{row[f'{clock}_ms_a_device']:.2f}" for clock in ("wall", "cpu")]
        rows.append([*begin, f"{row['entries']:,}", *times, f"{100 * share:.0f} %", f"{row['peak_mb']:.0f}"])
    return "\n\n".join([table(head, rows), *scale_goals(found["rows"])])


def scale_goals(rows: Sequence[Found]) -> list[str]:
    """Whether time a device stays flat, and whether 1,000 devices of the largest base fit."""
    done = [row for row in rows if "failed" not in row]
    small = [row for row in done if row["rank"] == rows[0]["rank"]]
    lines = []
    if len(small) > 1:
        apart = {c: small[-1][f"{c}_ms_a_device"] / small[0][f"{c}_ms_a_device"] for c in ("wall", "cpu")}
        lines.append(
            f"Time a device at {small[-1]['devices']:,} devices over that at {small[0]['devices']:,}: wall "
            f"{apart['wall']:.2f}, CPU {apart['cpu']:.2f}; wall {verdict(apart['wall'], 1.2)}."
        )
    lines += [
        f"Peak memory, {row['base']}, {row['devices']:,} devices: {row['peak_mb']:.0f} MB, "
        f"{verdict(row['peak_mb'], 6000)}."
        for row in done
        if row["rank"] != rows[0]["rank"]
    ]
    return lines


def peers(found: Found) -> str:
    """Every engine at every number of devices."""
    parts = []
    for row in found["rows"]:
        title = (
            f"{row['base']}, {row['devices']} devices x {row['batch']} x {row['tokens']} tokens, {row['turns']} turns."
        )
        lines = []
        for name, one in row["variants"].items():
            ratios = [interval(one[f"{c}_ratio"]) if f"{c}_ratio" in one else "1" for c in ("wall", "cpu")]
            difference = row["differences"].get(name)
            lines.append([name, spread(one["wall"]), spread(one["cpu"]), *ratios,
                          "" if difference is None else f"{difference:.1e}"])  # fmt: skip
        head = ["", "wall s a round", "CPU s a round", "wall ratio to ours", "CPU ratio to ours", "gradient differs by"]
        parts += [title, table(head, lines), *(f"{note}." for note in row["notes"])]
    return "\n\n".join(parts)


RENDER: dict[str, Callable[[Found], str]] = {
    "full_length": full_length, "real_data": real_data, "compiled": compiled, "overhead": overhead, "start": start,
    "scale": scale, "peers": peers,
}  # fmt: skip


def section(found: Found) -> str:
    """A case's table with a line that says where and when it was measured."""
    on = found["machine"]
    where = (
        f"*{on['cores']} cores ({on['processor']}), {on['threads']} threads, torch {on['torch']}, load before "
        f"{found['load']:.1f}, commit {on['commit']}, {on['time']}{', quick' if found['quick'] else ''}.*"
    )
    body = f"Failed: {found['failed']}." if "failed" in found else RENDER[found["case"]](found)
    return f"{where}\n\n{body}"


def regenerate(page: Path, out: Path) -> None:
    """Put every result of `out` between its markers of the page; what was not measured stays as it is."""
    text = page.read_text(encoding="utf-8")
    for case in RENDER:
        file = out / f"{case}.json"
        if file.is_file():
            head, tail = around(text, "bench", case, page)
            text = f"{head}{section(json.loads(file.read_text(encoding='utf-8')))}{tail}"
    page.write_text(text, encoding="utf-8")


def around(text: str, kind: str, name: str, page: Path) -> tuple[str, str]:
    """What stands before and after a table of a page, its markers included. Raises ValueError where these are not."""
    begin, end = f"<!-- {kind}: {name} -->\n", f"<!-- end: {name} -->"
    head, opened, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not opened or not closed:
        raise ValueError(f"{page}: has no markers {begin.strip()} and {end}")
    return f"{head}{begin}\n", f"\n\n{end}{tail}"
