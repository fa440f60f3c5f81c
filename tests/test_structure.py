"""The structure of the package: imports point down, names are the field's own, and one name means one thing."""

from itertools import chain
from pathlib import Path

import pytest
import structure
from naming import COUNTED, Name, StopList, names_of, plain_type, types_of
from structure import LEVEL, Package

import airpfed

ROOT = Path(airpfed.__file__).parent
PACKAGE = structure.read(ROOT)
STOP_LIST = StopList.load()
TABLES = (STOP_LIST.names, STOP_LIST.words, STOP_LIST.functions)


def package(tmp_path: Path, files: dict[str, str]) -> Package:
    """Write the files of a package `toy`, and an empty `__init__` where a folder has none."""
    for name, text in files.items():
        path = tmp_path / "toy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    for folder in {(tmp_path / "toy" / name).parent for name in files} | {tmp_path / "toy"}:
        (folder / "__init__.py").touch()
    return structure.read(tmp_path / "toy")


def refused(text: str, file: str = "air/uplink.py") -> list[str]:
    """The names in a file's text that the stop list refuses."""
    names = names_of(file, structure.ast.parse(text))
    return sorted(name.name for name, _ in STOP_LIST.hits(names) if name.kind in COUNTED)


# Folders and imports


def test_the_package_itself_holds_little():
    assert {path.name for path in ROOT.iterdir() if path.is_file()} == {"__init__.py", "cli.py", "py.typed"}


def test_every_folder_has_a_level():
    assert set(structure.by_folder(PACKAGE)) == set(LEVEL)


@pytest.mark.parametrize("folder", LEVEL)
def test_imports_point_down_or_stay_in_the_folder(folder):
    wrong = structure.wrong_arrows(PACKAGE.graph)
    assert not [(file, target) for file, target in wrong if structure.top(file) == folder]


def test_no_circle_among_files():
    assert not structure.circles(PACKAGE.graph)


def test_only_the_command_line_knows_the_federation():
    users = {
        structure.top(file) for file, targets in PACKAGE.graph.items() if "federation" in map(structure.top, targets)
    }
    assert users <= {"federation", "cli"}


@pytest.mark.parametrize(
    ("library", "folders"),
    [("transformers", {"model"}), ("peft", {"model"}), ("flwr", {"federation"})],
)
def test_a_library_is_known_to_its_folder_alone(library, folders):
    modules = PACKAGE.modules.values()
    users = {structure.top(m.name) for m in modules if library in structure.libraries(m)}
    assert users == folders


def test_settings_know_no_torch():
    assert not [
        m.name for m in PACKAGE.modules.values() if m.name.startswith("config") and "torch" in structure.libraries(m)
    ]


def test_the_mathematics_sees_no_settings():
    users = {structure.top(file) for file, targets in PACKAGE.graph.items() if "config" in map(structure.top, targets)}
    assert users <= {"config", "report"} | {folder for folder in LEVEL if LEVEL[folder] >= LEVEL["experiment"]}


# Names


@pytest.mark.parametrize("folder", LEVEL)
def test_no_name_is_on_the_stop_list(folder):
    modules = [module for module in PACKAGE.modules.values() if structure.top(module.name) == folder]
    names = chain.from_iterable(names_of(module.file, module.tree) for module in modules)
    hits = [(name, instead) for name, instead in STOP_LIST.hits(names) if name.kind in COUNTED]
    assert not hits, "\n" + "\n".join(f"{n.file}:{n.line} {n.name} ({n.kind}): {instead}" for n, instead in hits)


def test_no_public_name_means_two_things():
    several = PACKAGE.several_meanings()
    assert not several, "\n" + "\n".join(f"{name}: {', '.join(modules)}" for name, modules in several.items())


def test_no_public_name_is_a_subpackage():
    assert not PACKAGE.rebound()


def test_the_stop_list_names_a_word_once():
    words = list(chain.from_iterable(TABLES))
    assert len(set(words)) == len(words)
    assert not [word for word in STOP_LIST.words if word != word.lower()]


def test_exceptions_to_the_stop_list_are_needed():
    """A name of a file format stands in that file; a name of one meaning is defined more than once."""
    bound = {(name.file, name.name) for name in PACKAGE.names()}
    assert {(file, name) for file, names in STOP_LIST.format.items() for name in names} <= bound
    assert all(len(PACKAGE.definitions().get(name, ())) > 1 for name in STOP_LIST.one_meaning)


# The checks themselves, on planted faults


def test_an_arrow_up_or_sideways_is_found(tmp_path):
    toy = package(
        tmp_path,
        {
            "core/units.py": "",
            "air/uplink.py": "from toy.core import units\nfrom toy.air.designs import mmse",
            "air/designs/__init__.py": "from .least_error import mmse",
            "air/designs/least_error.py": "def mmse():\n    import toy.model.forward",
            "model/forward.py": "from ..training.loop import run",
            "training/loop.py": "from .. import devices\nfrom toy.core.units import watts\nrun = 1",
            "devices/gradients.py": "",
        },
    )
    assert structure.wrong_arrows(toy.graph) == [
        ("air.designs.least_error", "model.forward"),
        ("model.forward", "training.loop"),
    ]
    assert toy.graph["air.designs"] == {"air.designs.least_error"}
    wide, narrow = structure.by_folder(toy), structure.by_subfolder(toy)
    assert wide == {
        "air": {"core", "model"},
        "core": set(),
        "devices": set(),
        "model": {"training"},
        "training": {"core", "devices"},
    }
    assert (structure.arrows(narrow), structure.chain_length(narrow)) == (6, 5)
    assert narrow["air"] == {"core", "air.designs"}


def test_a_circle_is_found(tmp_path):
    files = {
        "a.py": "import toy.b",
        "b.py": "def f():\n    from toy import c",
        "c.py": "from . import a",
        "d.py": "from toy.a import x",
    }
    toy = package(tmp_path, files)
    assert structure.circles(toy.graph) == [["a", "b", "c"]]
    assert structure.chain_length(toy.graph) == 2
    assert not structure.circles(package(tmp_path, files | {"c.py": ""}).graph)


def test_loose_files_have_no_level(tmp_path):
    assert set(structure.by_folder(package(tmp_path, {"streams.py": "", "core/units.py": ""}))) - set(LEVEL) == {
        "streams"
    }


def test_lines_of_code_are_neither_blank_nor_comment_nor_docstring(tmp_path):
    text = '"""Doc\n\nstring."""\n\nimport ast  # why\n\n\ndef f():\n    """One."""\n    # no\n    return """a\nb"""\n'
    assert package(tmp_path, {"a.py": text}).modules["a"].code_lines() == 4


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("def sends(told, *, wanted_rows=1, **kept): ...", ["told", "wanted_rows", "kept"]),
        ("class Reply:\n    asked: int\n    def send(self):\n        self.heard = 1", ["asked", "heard"]),
        ("class Parcel:\n    def loss_told(self, x): ...", ["Parcel", "loss_told"]),
        ("FOUND = 1\nrun = lambda one: one", ["FOUND", "one"]),
        ("class Slot: ...\nclass SlotPlan:\n    slot: int", ["Slot"]),
        ("def scaled(x): ...\nclass Point:\n    scaled: bool", ["scaled"]),
        ("class BadParcelError(Exception): ...", ["BadParcelError"]),
        ("def f(x):\n    told = [one for one in x]\n    def found(): ...\n    return told", []),
        ("def _told(x): ...", []),
        ("from toy import told\ntold(own=1)", []),
    ],
)
def test_the_stop_list_refuses_parameters_fields_and_public_names(text, names):
    assert refused(text) == sorted(names)


def test_names_of_files_stay_in_their_file_alone():
    text = "class Probe:\n    reach: float"
    assert refused(text, "core/run_files.py") == []
    assert refused(text) == ["reach"]
    assert refused("", "air/own.py") == ["own"]
    assert refused("", "own/__init__.py") == ["own"]
    assert refused("", "air/__init__.py") == []


def test_locals_and_private_names_are_counted_apart():
    kinds = {name.name: name.kind for name in names_of("a.py", structure.ast.parse("def _told():\n    found = 1"))}
    assert kinds == {"a": "module", "_told": "private", "found": "local"}


def test_a_name_of_two_meanings_is_found(tmp_path):
    toy = package(
        tmp_path,
        {
            "air/uplink.py": "def send(): ...\nclass Plan: ...\ndef main(): ...",
            "model/forward.py": "class Plan: ...\nfrom toy.air.uplink import send\ndef main(): ...",
            "cli.py": "def send(): ...",
        },
    )
    assert toy.several_meanings() == {"Plan": ["air.uplink", "model.forward"]}


def test_a_name_that_a_subpackage_rebinds_is_found(tmp_path):
    toy = package(
        tmp_path,
        {
            "__init__.py": '__all__ = ["sweeps", "run"]',
            "sweeps/__init__.py": "from toy.sweeps.compare import compare\nfrom toy.sweeps import job",
            "sweeps/compare.py": "def compare(): ...",
            "sweeps/job.py": "def run(): ...\ndef sweeps(): ...",
        },
    )
    assert toy.rebound() == ["sweeps.job.sweeps", "__init__.py: sweeps", "sweeps/__init__.py: compare"]


def test_types_differ_by_meaning_only():
    names = [Name("a.py", 1, "x", "parameter", text) for text in ("int | None", "'int'", "Annotated[int, Field(ge=0)]")]
    assert types_of(names) == {"x": {"int": 3}}
    texts = [
        'Float[Tensor, " K"]',
        "list[int]",
        "tuple[int, ...]",
        "Mapping[str, int]",
        "dict[str, float]",
        "str | Path",
    ]
    plain = [plain_type(structure.ast.parse(text, mode="eval").body) for text in texts]
    assert plain == ["Float", "several int", "several int", "dict", "dict", "Path | str"]


def test_the_report_has_every_figure(tmp_path, capsys, monkeypatch):
    package(
        tmp_path,
        {"a.py": "import toy.b", "b.py": "import toy.a\ndef told(found): ...", "core/units.py": "class Slot: ..."},
    )
    monkeypatch.setattr("sys.argv", ["structure.py", str(tmp_path / "toy"), "--list"])
    structure.main()
    lines = capsys.readouterr().out
    assert "circles among files                            1\n" in lines
    assert "  a <-> b\n" in lines
    assert "  b.py:2 found (parameter): " in lines
