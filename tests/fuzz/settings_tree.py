"""Settings by machine: what is accepted plays a round with finite numbers, what is not is refused, a line a problem.

python -m fuzz.settings_tree 2000 1
"""

import json
import math
import string
import sys
import tempfile
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import tomlkit
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from airpfed.analysis.probe import probe
from airpfed.config import settings_file
from airpfed.config.choice import KINDS
from airpfed.config.schema import Settings
from airpfed.core.errors import UserError
from airpfed.core.rows import options_model
from airpfed.core.run_files import Probe, RoundRecord, to_json_tree
from airpfed.experiment import build
from airpfed.training.loop import play_round
from support.models import SMALL, save_bert, save_llama
from support.settings import write_rows

CAUSAL = ["q_proj", "v_proj"]
ENCODER = ["query", "value"]


@dataclass(frozen=True)
class Case:
    """A settings file's bytes and what `--set` says."""

    content: bytes
    overrides: tuple[str, ...]


def furnish(folder: Path) -> Path:
    """Tiny bases of two layers and tiny data, by names relative to the settings."""
    save_llama(folder / "llama", **SMALL)
    save_bert(folder / "bert", **SMALL)
    write_rows(folder / "colours.csv", 30, ("red", "blue"), 1)
    write_rows(folder / "moods.csv", 30, ("good", "bad", "it"), 2)
    return folder


def plain(causal: bool) -> dict[str, Any]:
    """A tree that is accepted."""
    colours = {"labels": {"red": " red", "blue": " blue"}, "devices": 2}
    moods = {"labels": {"good": " good", "bad": " bad", "it": " it"}, "devices": 1}
    common = {"prompt": "{text} Label :", "samples_per_device": 3, "dev_samples": 2, "test_samples": 2}
    tasks = [
        {"name": n, "source": f"./{n}.csv", **common, **own} for n, own in (("colours", colours), ("moods", moods))
    ]
    return {
        "model": {"base": "./llama" if causal else "./bert", "max_tokens": 12},
        "adapters": {"rank_shared": 1, "rank_personal": 1, "target_modules": CAUSAL if causal else ENCODER},
        "tasks": tasks,
        "devices": {"batch_size": 2},
        "server": {"rounds": 1},
        "radio": {"antennas": 4, "coherence_symbols": 60},
        "run": {"threads": 1},
    }


SIZES = {
    "antennas": 8, "access_points": 3, "devices": 3, "samples_per_device": 4, "dev_samples": 3, "test_samples": 3,
    "batch_size": 3, "local_steps": 2, "rank_shared": 3, "rank_personal": 3, "rounds": 2, "pilot_rounds": 1,
    "lanczos_steps": 3, "hessian_samples": 2, "max_tokens": 16, "max_new_tokens": 3, "starts": 2, "threads": 1,
    "subcarrier_groups": 4, "personal_slots": 3, "min_devices": 3,
}  # fmt: skip
"""Keys on which the time of a round depends, and the most that is drawn of them; beyond it only what is refused."""

FEW = {"coherence_symbols": (20, 60, 1000, 10**9), "subcarriers": (16, 1024), "draws": (20, 21, 5)}
"""Keys of which only these values are drawn."""

NAMED: dict[str, tuple[Any, ...]] = {
    "base": ("./llama", "./bert", "./colours.csv", ""),
    "target_modules": (CAUSAL, ENCODER, ["o_proj"], ["no"], []),
    "layers": ("all", "last-1", "last-9", [0], [0, 1], [1, 1], [-1], [7]),
    "name": ("colours", "moods", "a", "..", "a b"),
    "source": ("./colours.csv", "./moods.csv", "./no.csv", "no"),
    "labels": ({}, {"red": " red", "blue": " blue"}, {"red": " red"}, {"good": " it", "bad": " it"}),
    "classes": ([], ["red"], ["good", "bad"], ["red", "blue"], ["no"]),
    "prompt": ("", "{text} :", "{no}", "{{}}", "{text}{label}"),
    "text": ("text", "label", "no"),
    "label": ("label", "text", "no"),
    "split_as": ("colours", "moods", "no", ""),
    "column": ("label", "text", "no"),
    "power_dbm": (20.0, -200.0, 200.0, [1.0, 2.0], [1.0], []),
    "device": ("cpu", "auto"),
}
"""Values of keys that name something."""

WILD = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 10**400, -(10**30), 2**63, 1e308, -1e308, 5e-324, -0.0, 0, -1]),
    st.booleans(),
    st.text(max_size=6),
    st.just(date(2026, 1, 1)),
    st.lists(st.integers(-3, 3), max_size=3),
    st.just([[1], [[2]]]),
    st.dictionaries(st.text(min_size=1, max_size=3), st.integers(0, 3), max_size=2),
    st.floats(allow_nan=True),
)


def values(schema: dict[str, Any], key: str) -> st.SearchStrategy[Any]:
    """Values that a key may have, by its JSON schema: mostly of its type, at and beyond the ends of its range."""
    if key in NAMED:
        return st.sampled_from(NAMED[key])
    if key in FEW:
        return st.sampled_from(FEW[key])
    if schema.get("type") == "choice":
        return choices(schema["kind"])
    if "anyOf" in schema:
        return st.one_of([values(one, key) for one in schema["anyOf"]])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "const" in schema:
        return st.just(schema["const"])
    least = schema.get("minimum", schema.get("exclusiveMinimum", -1000))
    most = schema.get("maximum", schema.get("exclusiveMaximum", 1e6))
    if schema.get("type") == "integer":
        inside = st.integers(int(least), min(int(most), SIZES.get(key, 10**6)))
        return st.one_of(inside, inside, st.sampled_from([int(least) - 1, int(most) + 1]))
    if schema.get("type") == "number":
        small = st.floats(float(least), min(float(most), 100.0 + float(least)))
        return st.one_of(small, small, st.sampled_from([float(least), float(most), -1.0, 0.0, 1.0]), st.integers(0, 9))
    return st.booleans() if schema.get("type") == "boolean" else st.text(max_size=8)


def choices(kind: str) -> st.SearchStrategy[Any]:
    """A row's name, or a table with some of its options, sometimes another row's."""
    rows = KINDS[kind].rows
    names = [name for name in rows if kind != "channels" or name in ("rayleigh", "rician")]

    @st.composite
    def table(draw: st.DrawFn) -> dict[str, Any]:
        name, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        options = rows.function(rows[other if draw(st.integers(0, 9)) == 0 else name])
        schema = options_model(kind, options).model_json_schema().get("properties", {})
        drawn = draw(st.lists(st.sampled_from(sorted(schema)), max_size=2)) if schema else []
        return {"name": name} | {key: draw(values(schema[key], key)) for key in drawn}

    missing = ("tensorboard", "mlflow", "wandb", "package")  # what may not be installed or downloaded here
    named = st.sampled_from([name for name in names if name not in missing])
    return st.one_of(named, named, table().filter(lambda tree: tree["name"] not in missing))


def keys() -> list[tuple[str, str, dict[str, Any]]]:
    """(section, key, JSON schema) of every setting; a task's section is `tasks`."""
    found = []
    for section, field in Settings.model_fields.items():
        table = settings_file.section_of(field.annotation)
        if table is None:
            continue
        schema = table.model_json_schema()["properties"]
        found += [(section, key, schema[key]) for key in table.model_fields]
    return found


KEYS = keys()
BY_SECTION = [[one for one in KEYS if one[0] in part] for part in (("adapters",), ("devices", "server"), ("radio",))]


@st.composite
def changes(draw: st.DrawFn) -> tuple[str, str, Any]:
    """One key with a value: (section, key, value)."""
    section, key, schema = draw(st.sampled_from(draw(st.sampled_from([KEYS, *BY_SECTION]))))
    if draw(st.integers(0, 39)) == 0:
        key = draw(st.text(min_size=1, max_size=6))
    value = draw(WILD if draw(st.integers(0, 9)) == 0 else values(schema, key))
    return section, key, value


def put(tree: dict[str, Any], section: str, key: str, value: Any, task: int) -> None:
    """Write a key; a task's into one of the tasks."""
    if section == "tasks":
        tree["tasks"][task][key] = value
    else:
        tree.setdefault(section, {})[key] = value


LETTERS = string.ascii_letters + string.digits + "._*= []{}\"'-+é\u0000\n"


@st.composite
def overrides(draw: st.DrawFn) -> str:
    """What stands after `--set`: mostly a key and a value, sometimes anything."""
    if draw(st.integers(0, 4)) == 0:
        odd = ("radio=3", ".=", "a=b=c", "tasks.*.x=1", "tasks=1", "radio.antennas=[" * 999, "=", "radio..x=1")
        return draw(st.one_of(st.text(LETTERS, max_size=20), st.sampled_from(odd)))
    section, key, value = draw(changes())
    where = f"tasks.{draw(st.sampled_from(['*', 'colours', 'moods', '0']))}" if section == "tasks" else section
    if draw(st.integers(0, 9)) == 0:
        return f"{where}.{key}="
    return f"{where}.{key}={value if isinstance(value, str) else tomlkit.item(value).as_string()}"


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A plain tree with a few keys changed, in the file or by `--set`; now and then the text itself is damaged."""
    tree = plain(draw(st.booleans()))
    for section, key, value in draw(st.lists(changes(), max_size=3)):
        put(tree, section, key, value, draw(st.integers(0, 1)))
    if draw(st.integers(0, 19)) == 0:
        section = draw(st.sampled_from(["radio", "tasks", "model", "server", "expected", "é", "node"]))
        tree[section] = draw(WILD)
    content = tomlkit.dumps(tree).encode("utf-8", "surrogatepass")
    return Case(draw(damaged(content)), tuple(draw(st.lists(overrides(), max_size=1))))


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The text as it is; or with a byte order mark, other line ends, a piece cut out, doubled or put in."""
    kind = draw(st.integers(0, 19))
    if kind == 0:
        return b"\xef\xbb\xbf" + content
    if kind == 1:
        return content.replace(b"\n", b"\r\n")
    if kind in (2, 3):
        a, b = sorted(draw(st.tuples(*2 * [st.integers(0, len(content))])))
        b = min(b, a + 30)
        return (
            content[:a] + draw(st.sampled_from([b"", content[a:b] * 2, b"[" * 9, b"\xff", b"\x00", b'"'])) + content[b:]
        )
    return content


def check(case: Case, folder: Path, kept: "OrderedDict[str, Any] | None" = None) -> Literal["accepted", "refused"]:
    """Whether the settings are accepted; anything but a round with finite numbers or a UserError is raised.

    folder: furnished. kept: what cases share, by what it depends on.
    """
    file = folder / "case.toml"
    file.write_bytes(case.content)
    try:
        read = settings_file.read_new_settings(file, case.overrides)
        once = folder / "again" / "experiment.toml"
        once.parent.mkdir(exist_ok=True)
        settings_file.write_settings(read, once)
        assert settings_file.read_new_settings(once) == read, "written settings read back otherwise"
        _plays(read, OrderedDict() if kept is None else kept)
    except UserError as error:
        for line in str(error).split("\n"):
            assert line.strip() and line.isprintable() and len(line) < 1000, f"not one readable line: {line!r}"
        return "refused"
    return "accepted"


def _plays(read: Settings, kept: "OrderedDict[str, Any]") -> None:
    """A round of the settings has finite numbers, which can be written and read."""
    key = build.preparation_key(read)
    if key not in kept:
        tasks = build.load_tasks(read)
        kept[key] = tasks, build.build_preparation(read, tasks)
        if len(kept) > 20:
            kept.popitem(last=False)
    tasks, made = kept[key]
    experiment = build.build_experiment(read, tasks, made)
    seen = None if experiment.monitor is None else probe(experiment.monitor, experiment.initial)
    if seen is not None:
        probed = to_json_tree(seen.model_dump(mode="json"))
        assert (
            to_json_tree(Probe.model_validate_json(json.dumps(probed, allow_nan=False)).model_dump(mode="json"))
            == probed
        )
    _, record = play_round(experiment, experiment.initial, seen)
    text = record.model_dump_json()
    for place, number in numbers(record.model_dump()):
        assert math.isfinite(number), f"{place} = {number}"
    assert RoundRecord.model_validate_json(text) == record
    assert set(record.loss) == {task.name for task in read.tasks}, f"no loss: {record.loss}"


def numbers(tree: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a record with their places."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from numbers(value, f"{place}.{key}")
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from numbers(value, place)
    elif isinstance(tree, int | float):
        yield place, float(tree)


def run(n: int, number: int = 0, log: Callable[[str], None] = print) -> Counter[str]:
    """Try n cases; how many were accepted, refused, and failed; each kind of failure is said once, with its case."""
    found: Counter[str] = Counter()
    told: set[str] = set()
    kept: OrderedDict[str, Any] = OrderedDict()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = furnish(Path(name))

        @seed(number)
        @settings(max_examples=n, database=None, deadline=None, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(cases())
        def one(case: Case) -> None:
            try:
                found[check(case, folder, kept)] += 1
            except Exception as error:
                found["failed"] += 1
                last = error.__traceback__
                while last and last.tb_next:
                    last = last.tb_next
                line = f"{last.tb_frame.f_code.co_filename}:{last.tb_lineno}" if last else ""
                kind = f"{type(error).__name__} {line} {str(error)[:50]}"
                if kind not in told:
                    told.add(kind)
                    text = case.content.decode("utf-8", "replace")
                    log(f"--- {kind}\n{str(error)[:500]}\n{text}\noverrides: {case.overrides}")

        one()
    return found


if __name__ == "__main__":
    print(dict(run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)))
