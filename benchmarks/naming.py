"""Names that a package binds: where, how often with different meanings, and which of them are on the stop list."""

import ast
import re
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

STOP_LIST = Path(__file__).resolve().parent.parent / "tests" / "support" / "stop_list.toml"

Function = ast.FunctionDef | ast.AsyncFunctionDef
PUBLIC = ("function", "class", "constant", "module")
COUNTED = ("parameter", "field", *PUBLIC)  # what the stop list refuses; private names and locals are counted apart


class Name(NamedTuple):
    """A name and where it is bound. kind: one of COUNTED, "private" or "local"."""

    file: str
    line: int
    name: str
    kind: str
    annotation: str = ""


def names_of(file: str, tree: ast.Module) -> Iterator[Name]:
    """List what a file binds: parameters, fields, functions, classes, constants, locals, and the file's own name."""
    path = Path(file)
    module = path.parent.name if path.name == "__init__.py" else path.stem
    if module:
        yield Name(file, 1, module, "module")
    yield from _bound(tree, file, "module")


def _bound(scope: ast.AST, file: str, within: str) -> Iterator[Name]:
    """List what a node's children bind. within: module, class or function, whichever is the innermost around them."""
    for node in ast.iter_child_nodes(scope):
        inner = within
        if isinstance(node, ast.arg) and node.arg not in ("self", "cls"):
            yield Name(file, node.lineno, node.arg, "parameter", _text(node.annotation))
        elif isinstance(node, Function | ast.ClassDef):
            inner = "class" if isinstance(node, ast.ClassDef) else "function"
            yield _named(node.name, inner, file, node.lineno, within)
        elif isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            inner = "function"
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and within == "class":
            yield _named(node.target.id, "field", file, node.lineno, within, _text(node.annotation))
            continue
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield _named(node.id, "field" if within == "class" else "constant", file, node.lineno, within)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _text(node.value) == "self":
            yield _named(node.attr, "field", file, node.lineno, "class")
        yield from _bound(node, file, inner)


def _named(name: str, kind: str, file: str, line: int, within: str, annotation: str = "") -> Name:
    kind = "local" if within == "function" else "private" if name.startswith("_") else kind
    return Name(file, line, name, kind, annotation)


def _text(node: ast.expr | None) -> str:
    return ast.unparse(node) if node else ""


@dataclass(frozen=True)
class StopList:
    """Words that no name may be, each with what to write instead.

    names: whole names, as they are spelt. words: also parts of a name (`told` in `samples_told`). functions: wrong for
    a function or class, right for a value. one_meaning: name -> what it means in every module that defines it.
    format: file -> names that files of a run hold, or the layout prescribes; they stay.
    """

    names: Mapping[str, str]
    words: Mapping[str, str]
    functions: Mapping[str, str]
    one_meaning: Mapping[str, str]
    format: Mapping[str, list[str]]

    @classmethod
    def load(cls, path: Path = STOP_LIST) -> "StopList":
        return cls(**tomllib.loads(path.read_text(encoding="utf-8")))

    def instead(self, name: Name) -> str | None:
        """Say what to write instead of a name, or None where it may stay."""
        if name.name in self.format.get(name.file, []):
            return None
        bare = name.name.strip("_")
        if bare in self.names:
            return self.names[bare]
        if bare in self.functions and name.kind in ("function", "class", "private"):
            return self.functions[bare]
        parts = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", bare).lower().split("_")
        return next((self.words[part] for part in parts if part in self.words), None)

    def hits(self, names: Iterable[Name]) -> list[tuple[Name, str]]:
        """List the names that are on the list, by file and line, each with what to write instead."""
        return [(name, text) for name in sorted(names) if (text := self.instead(name)) is not None]


def types_of(names: Iterable[Name]) -> dict[str, Counter[str]]:
    """Map each parameter and field to the types it is annotated with, and how often."""
    types: dict[str, Counter[str]] = defaultdict(Counter)
    for name in names:
        if name.kind in ("parameter", "field") and name.annotation:
            types[name.name][plain_type(ast.parse(name.annotation, mode="eval").body)] += 1
    return types


SEVERAL = {"Sequence", "list", "tuple", "set", "frozenset", "Iterable", "Iterator", "Collection", "Set"}


def plain_type(node: ast.expr) -> str:
    """Spell a type without what does not change the meaning: None, shapes, metadata, the kind of container."""
    match node:
        case ast.Constant(value=str(text)):
            return plain_type(ast.parse(text, mode="eval").body)
        case ast.BinOp(op=ast.BitOr()):
            parts = {plain_type(part) for part in (node.left, node.right)} - {"None"}
            return " | ".join(sorted(parts))
        case ast.Subscript(slice=ast.Tuple(elts=[of, *_])):
            head = _text(node.value)
            if head == "Annotated":
                return plain_type(of)
            if head in SEVERAL:
                return f"several {plain_type(of)}"
            return {"Mapping": "dict"}.get(head, head)  # a mapping, a callable, or an array by the type of its entries
        case ast.Subscript():
            head = _text(node.value)
            return f"several {plain_type(node.slice)}" if head in SEVERAL else head
        case _:
            return _text(node)
