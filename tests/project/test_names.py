"""Names are the field's terms: no identifier belongs to the old private vocabulary."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import bids_cmb

PACKAGE = Path(bids_cmb.__file__).parent
ROOT = Path(__file__).parents[2]
SCRIPTS = [  # beside the package
    ROOT / "run.py",
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *sorted((ROOT / "docs").glob("*.py")),
    *sorted((ROOT / "tests" / "factories").glob("*.py")),
]
BANNED = frozenset({"said", "told", "heard", "asked", "lies", "own", "found", "one", "at"})
# What is still there, by package or module. Entries only go: one that is not needed fails, too.
REMAINING = {
    "metrics/scores.py": "found",  # `Counts.found` is a column of results
}


def identifiers(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Every name that a module gives to something, and its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, node.lineno


def part_of(module: str) -> str | None:
    """The entry of `REMAINING` that a module belongs to."""
    return next((part for part in REMAINING if f"{module}/".startswith(f"{part}/")), None)


@pytest.fixture(scope="module")
def banned():
    """Where a banned name is given, as (part of `REMAINING` or None, name, place)."""
    return [
        (part_of(module), name, f"{module}:{line}: {name}")
        for path in sorted(PACKAGE.rglob("*.py"))
        for module in [path.relative_to(PACKAGE).as_posix()]
        for name, line in identifiers(ast.parse(path.read_text(encoding="utf-8")))
        if name in BANNED
    ]


def test_identifiers_are_the_terms_of_the_field(banned):
    wrong = [place for part, name, place in banned if name not in REMAINING.get(part, "").split()]
    assert not wrong


def test_scripts_and_what_makes_test_data_are_named_by_the_terms_of_the_field():
    assert len(SCRIPTS) > 25
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SCRIPTS
        for name, line in identifiers(ast.parse(path.read_text(encoding="utf-8")))
        if name in BANNED
    ]
    assert not wrong


def test_the_list_of_what_remains_only_shrinks(banned):
    used = {(part, name) for part, name, _ in banned}
    listed = {(part, name) for part, names in REMAINING.items() for name in names.split()}
    assert not listed - used, "gone from the package: take it off the list"


@pytest.mark.parametrize(
    "code",
    ["def said(): ...", "def f(told): ...", "heard = 1", "for own in (): ...", "self.found = 1",
     "[one for one in ()]", "class asked: ...", "import os as at", "(lies := 1)"],
)  # fmt: skip
def test_a_banned_name_is_noticed_wherever_it_is_given(code):
    assert any(name in BANNED for name, _ in identifiers(ast.parse(code)))
