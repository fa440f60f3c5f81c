"""Measure the structure of the package: size, imports between folders, and names.

    python benchmarks/structure.py [DIR] [--list]

DIR is a checkout or the package's folder; without it, the checkout of this file. Nothing of the package is imported, so
that any checkout can be measured. The stop list is the one beside this file, whatever is measured.
"""

import argparse
import ast
import io
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from naming import COUNTED, PUBLIC, Function, Name, StopList, names_of, types_of

CHECKOUT = Path(__file__).resolve().parent.parent

# A file imports its own folder and lower levels; folders of one level do not import one another.
LEVELS = (
    ("core",),
    ("config", "tasks", "model", "air", "theory"),
    ("devices",),
    ("training",),
    ("analysis", "report"),
    ("experiment",),
    ("planning", "sweeps", "federation", "testing"),
    ("cli",),
)
LEVEL = {node: level for level, nodes in enumerate(LEVELS) for node in nodes}

Graph = Mapping[str, set[str]]


@dataclass(frozen=True)
class Module:
    """A file of the package. name: dotted, below the package; a folder's `__init__` goes by the folder's name."""

    name: str
    file: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def is_folder(self) -> bool:
        return self.file.endswith("__init__.py")

    @property
    def folder(self) -> str:
        """Name the folder that holds the file, "" for the package itself."""
        return self.name if self.is_folder else self.name.rpartition(".")[0]

    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def definitions(self) -> list[str]:
        """Name the public functions and classes of the module's own level."""
        nodes = [node for node in self.tree.body if isinstance(node, Function | ast.ClassDef)]
        return [node.name for node in nodes if not node.name.startswith("_")]

    def code_lines(self) -> int:
        """Count the lines that hold more than a comment or a docstring."""
        layout = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
        lines: set[int] = set()
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type not in layout:
                lines.update(range(token.start[0], token.end[0] + 1))
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Module | ast.ClassDef | Function) and ast.get_docstring(node, clean=False):
                lines.difference_update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
        return len(lines)


@dataclass(frozen=True)
class Package:
    """All files of a package by their dotted name; "" is the package's own `__init__`."""

    name: str
    modules: Mapping[str, Module]

    @cached_property
    def graph(self) -> dict[str, set[str]]:
        """Imports between files. The package's own `__init__`, which may offer names of all, is left out."""
        return {name: self.imports(module) for name, module in self.modules.items() if name}

    def imports(self, module: Module) -> set[str]:
        """Name the files of the package that a file imports, inside functions and type-checking blocks too."""
        targets = set()
        for base, name in imported(module, self.name):
            for dotted in (f"{base}.{name}", base):  # `from airpfed.air import uplink` means the file, if there is one
                package, _, target = dotted.partition(".")
                if package == self.name and target in self.modules and target:
                    targets.add(target)
                    break
        return targets - {module.name}

    def names(self) -> list[Name]:
        return [name for module in self.modules.values() for name in names_of(module.file, module.tree)]

    def definitions(self) -> dict[str, list[str]]:
        """Map each public function and class of module level to the modules that define one.

        Those of a command line are left out: they are commands, called as the user writes them.
        """
        modules: dict[str, list[str]] = defaultdict(list)
        for module in self.modules.values():
            if module.name.rpartition(".")[2] != "cli":
                for name in dict.fromkeys(module.definitions()):
                    modules[name].append(module.name)
        return modules

    def rebound(self) -> list[str]:
        """List public names that importing a subpackage would rebind, or could be taken for.

        Those are functions and classes named as a top folder, and names that a folder's `__init__` offers and that a
        file or folder below it has.
        """
        folders = {name for name, module in self.modules.items() if module.is_folder and "." not in name}
        lines = [f"{m}.{name}" for name, modules in self.definitions().items() if name in folders for m in modules]
        for folder in (module for module in self.modules.values() if module.is_folder):
            below = {
                name.rpartition(".")[2] for name in self.modules if name and name.rpartition(".")[0] == folder.name
            }
            lines += [f"{folder.file}: {name}" for name in sorted(offered(folder, self.name) & below)]
        return lines

    def several_meanings(self) -> dict[str, list[str]]:
        """Map each name that several modules define to them, except where the stop list says it has one meaning."""
        allowed = StopList.load().one_meaning
        return {
            name: modules
            for name, modules in sorted(self.definitions().items())
            if len(modules) > 1 and name not in allowed
        }


def imported(module: Module, package: str) -> Iterator[tuple[str, str]]:
    """List what a file imports: the module's absolute name, and the name imported from it or ""."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:  # one dot is the folder of the file, each further dot its parent
                folder = [package, *filter(None, module.folder.split("."))]
                base = ".".join(filter(None, [*folder[: len(folder) + 1 - node.level], base]))
            yield from ((base, alias.name) for alias in node.names)


def libraries(module: Module) -> set[str]:
    """Name the top packages that a file imports."""
    return {top(base) for base, _ in imported(module, "")}


def offered(module: Module, package: str) -> set[str]:
    """Name what a file defines, imports from other places, or lists in `__all__`; an imported submodule is itself."""
    itself = ".".join(filter(None, [package, module.name]))
    names = {name for base, name in imported(module, package) if name and base != itself} | set(module.definitions())
    for node in module.tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names |= {str(item.value) for item in ast.walk(node) if isinstance(item, ast.Constant)}
    return names


def read(folder: Path) -> Package:
    """Read a package from its folder or from the checkout that holds it under src/."""
    if not (folder / "__init__.py").is_file():
        folder = next(path.parent for path in sorted((folder / "src").glob("*/__init__.py")))
    modules = []
    for path in sorted(folder.rglob("*.py")):
        file = path.relative_to(folder)
        parts = file.parent.parts if path.name == "__init__.py" else file.with_suffix("").parts
        modules.append(Module(".".join(parts), file.as_posix(), path.read_text(encoding="utf-8")))
    return Package(folder.resolve().name, {module.name: module for module in modules})


# Imports between files and folders


def top(module: str) -> str:
    """Name the folder or loose file right below the package."""
    return module.partition(".")[0]


def fold(graph: Graph, node_of: Mapping[str, str]) -> dict[str, set[str]]:
    """Fold a graph of files into one of nodes; imports inside a node are left out."""
    folded: dict[str, set[str]] = {node_of[name]: set() for name in graph}
    for source, targets in graph.items():
        folded[node_of[source]] |= {node_of[target] for target in targets} - {node_of[source]}
    return folded


def by_folder(package: Package) -> dict[str, set[str]]:
    """Imports between folders and loose files; subfolders belong to their top folder."""
    return fold(package.graph, {name: top(name) for name in package.graph})


def by_subfolder(package: Package) -> dict[str, set[str]]:
    """Imports between folders and loose files; every subfolder stands for itself."""
    return fold(package.graph, {name: package.modules[name].folder or name for name in package.graph})


def arrows(graph: Graph) -> int:
    return sum(map(len, graph.values()))


def circles(graph: Graph) -> list[list[str]]:
    """Find the strongly connected components of more than one node (Tarjan, 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    components: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in sorted(graph[node]):
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            cut = stack.index(node)
            components.append(sorted(stack[cut:]))
            del stack[cut:]

    for node in sorted(graph):
        if node not in index:
            visit(node)
    return [component for component in components if len(component) > 1]


def chain_length(graph: Graph) -> int:
    """Count the nodes on the longest chain of imports; a circle counts as one node."""
    joined = {node: component[0] for component in circles(graph) for node in component}
    folded = fold(graph, {node: joined.get(node, node) for node in graph})
    length: dict[str, int] = {}

    def visit(node: str) -> int:
        if node not in length:
            length[node] = 1 + max(map(visit, folded[node]), default=0)
        return length[node]

    return max(map(visit, folded), default=0)


def wrong_arrows(graph: Graph) -> list[tuple[str, str]]:
    """List the imports between folders of the level table that do not point to a lower level."""
    pairs = [(source, target) for source, targets in sorted(graph.items()) for target in sorted(targets)]
    nodes = [(source, target, top(source), top(target)) for source, target in pairs]
    return [
        (source, target)
        for source, target, here, there in nodes
        if here != there and here in LEVEL and there in LEVEL and LEVEL[there] >= LEVEL[here]
    ]


# The report


def figures(package: Package) -> list[tuple[str, str]]:
    """What is measured, in words, and its value."""
    functions = [function for module in package.modules.values() for function in module.functions()]
    lengths = [(function.end_lineno or function.lineno) - function.lineno + 1 for function in functions]
    total = sum(len(module.text.splitlines()) for module in package.modules.values())
    code = sum(module.code_lines() for module in package.modules.values())
    names = package.names()
    kinds = Counter(name.kind for name, _ in StopList.load().hits(names))
    wide, narrow = by_folder(package), by_subfolder(package)
    unplaced = sorted(set(wide) - set(LEVEL))
    return [
        ("files", str(len(package.modules))),
        ("functions and methods", str(len(functions))),
        ("lines; of code", f"{total}; {code}"),
        ("function length, lines: median; longest", f"{median(lengths or [0]):g}; {max(lengths, default=0)}"),
        ("folders and loose files", str(len(wide))),
        ("  import arrows between them", str(arrows(wide))),
        ("  levels (longest chain)", str(chain_length(wide))),
        ("  circles", str(len(circles(wide)))),
        ("with every subfolder as a node", str(len(narrow))),
        ("  import arrows between them", str(arrows(narrow))),
        ("  levels (longest chain)", str(chain_length(narrow))),
        ("imports between files", str(arrows(package.graph))),
        ("circles among files", str(len(circles(package.graph)))),
        ("arrows up or sideways against the level table", str(len(wrong_arrows(package.graph)))),
        ("folders and loose files without a level", str(len(unplaced))),
        ("public functions and classes", str(len(package.definitions()))),
        ("  of them defined in several modules", str(len(package.several_meanings()))),
        ("public names that a subpackage rebinds", str(len(package.rebound()))),
        ("parameters and fields of several types", str(sum(len(types) > 1 for types in types_of(names).values()))),
        ("stop-list names: parameters", str(kinds["parameter"])),
        ("  fields", str(kinds["field"])),
        ("  public names", str(sum(kinds[kind] for kind in PUBLIC))),
        ("  apart: private names; locals", f"{kinds['private']}; {kinds['local']}"),
    ]


def lists(package: Package, most: int = 30) -> Iterator[str]:
    """What stands behind the figures, under headings."""
    names = package.names()
    several = {name: types for name, types in types_of(names).items() if len(types) > 1}
    order = sorted(several, key=lambda name: (-len(several[name]), -several[name].total(), name))
    hits = [(name, text) for name, text in StopList.load().hits(names) if name.kind in COUNTED]
    passed = {(name.file, name.line, name.name) for name, _ in hits}
    participles = Counter(
        name.name
        for name in names
        if name.kind in COUNTED and name.name.endswith("ed") and (name.file, name.line, name.name) not in passed
    )
    yield from ("", "circles among files", *(f"  {' <-> '.join(circle)}" for circle in circles(package.graph)))
    yield from ("", "arrows up or sideways", *(f"  {here} -> {there}" for here, there in wrong_arrows(package.graph)))
    yield from ("", "without a level", *(f"  {node}" for node in sorted(set(by_folder(package)) - set(LEVEL))))
    yield from ("", "public names defined in several modules")
    yield from (f"  {name}: {', '.join(modules)}" for name, modules in package.several_meanings().items())
    yield from ("", "public names that a subpackage rebinds", *(f"  {line}" for line in package.rebound()))
    yield from ("", f"parameters and fields of most types, the first {most}")
    yield from (f"  {name}: {len(several[name])}: {', '.join(sorted(several[name]))}" for name in order[:most])
    yield from ("", "stop-list names, how often", *_columns(Counter(name.name for name, _ in hits)))
    yield from ("", "names in -ed that the stop list lets pass", *_columns(participles))
    yield from ("", "stop-list names", *(f"  {n.file}:{n.line} {n.name} ({n.kind}): {text}" for n, text in hits))


def _columns(counts: Counter[str]) -> Iterator[str]:
    cells = [f"{name} {count}" for name, count in counts.most_common()]
    yield from ("  " + ", ".join(cells[i : i + 8]) for i in range(0, len(cells), 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dir", metavar="DIR", nargs="?", type=Path, default=CHECKOUT)
    parser.add_argument("--list", action="store_true", help="also list what stands behind the figures")
    args = parser.parse_args()
    package = read(args.dir)
    rows = figures(package)
    width = max(len(words) for words, _ in rows)
    print("\n".join(f"{words:{width}}  {value}" for words, value in rows))
    if args.list:
        print("\n".join(lists(package)))


if __name__ == "__main__":
    main()
