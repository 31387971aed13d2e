"""How large is the code, how long are its functions, and what does its test suite cost?

    python -m benchmarks.code_size benchmarks/results/code-size.json NAME --tree TREE --suite

Counts in a checkout and keeps the figures under NAME beside those of other checkouts in the file.
With ``--suite`` the tests of each folder run in a process of their own and the processor's
seconds are kept: the wall clock of a busy machine says nothing.
"""

import argparse
import ast
import builtins
import os
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from benchmarks.measurements import ROOT, measure_command
from bids_cmb.files import read_json, write_json

LONG_MODULE_LINES = 400
MANY_PARAMETERS = 6
REPEATED_NODES = 40  # a run of statements with fewer nodes of syntax is an idiom, no duplicate
LONGEST_RUN = 12  # statements
VARIABLE = re.compile(r"(?<!keyword\()(?:id|arg)='(\w+)'")
KEPT_NAMES = {*dir(builtins), "self", "np", "pd", "ndimage", "pytest"}

Modules = Mapping[str, ast.Module]
Place = tuple[str, int, int]  # module, first line, last line


def measure_code(tree: Path) -> dict[str, float]:
    """Count modules, circles, functions, duplicates and lines of a checkout.

    Args:
        tree: The root of a checkout, with ``bids_cmb`` and ``tests``.
    """
    package, tests = parse_modules(tree / "bids_cmb"), parse_modules(tree / "tests")
    functions = [node for module in package.values() for node in find_functions(module)]
    bodies = [count_body_lines(function) for function in functions]
    parameters = [count_parameters(function) for function in functions]
    lengths = [count_lines(path) for path in sorted((tree / "bids_cmb").rglob("*.py"))]
    edges = find_imports(package)
    return {
        "modules": len(package),
        "packages": len(list((tree / "bids_cmb").rglob("__init__.py"))) - 1,
        "module_circles": count_circles(edges),
        "package_circles": count_circles(_between_packages(edges)),
        "functions": len(functions),
        "body_median": float(np.median(bodies)),
        "body_p90": float(np.percentile(bodies, 90, method="lower")),
        "body_max": max(bodies),
        "parameters_max": max(parameters),
        "many_parameters": sum(count > MANY_PARAMETERS for count in parameters),
        "long_modules": sum(length > LONG_MODULE_LINES for length in lengths),
        "duplicates": len(find_duplicates(package)),
        "duplicates_tests": len(find_duplicates(tests)),
        "lines": sum(lengths),
        "lines_tests": sum(map(count_lines, (tree / "tests").rglob("*.py"))),
    }


def parse_modules(folder: Path) -> dict[str, ast.Module]:
    """Parse all modules below a folder, by their dotted names from the folder's own on."""
    modules = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(path.read_text("utf-8"))
    return modules


def count_lines(path: Path) -> int:
    """Count the lines of a file."""
    return len(path.read_text("utf-8").splitlines())


def find_functions(module: ast.Module) -> list[ast.FunctionDef]:
    """Find all functions, methods and functions within functions."""
    return [node for node in ast.walk(module) if isinstance(node, ast.FunctionDef)]


def count_body_lines(function: ast.FunctionDef) -> int:
    """Count the lines from the first statement after the docstring to the last."""
    statements = _without_docstring(function.body)
    return statements[-1].end_lineno - statements[0].lineno + 1 if statements else 0


def count_parameters(function: ast.FunctionDef) -> int:
    """Count the parameters, without ``self`` and ``cls``."""
    named = function.args
    every = [*named.posonlyargs, *named.args, *named.kwonlyargs, named.vararg, named.kwarg]
    return len([each for each in every if each and each.arg not in ("self", "cls")])


# --- Circles --------------------------------------------------------------------------------------


def find_imports(modules: Modules) -> set[tuple[str, str]]:
    """Find which module imports which, at its top: a pair for each.

    Imports within functions, which wait until they are called, are left out.
    """
    return {
        (name, target)
        for name, module in modules.items()
        for node in module.body
        for target in _imported(node, modules)
        if target != name
    }


def _imported(node: ast.stmt, modules: Modules) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (each.name for each in node.names if each.name in modules)
    elif isinstance(node, ast.ImportFrom) and node.module in modules:
        for each in node.names:
            inner = f"{node.module}.{each.name}"
            yield inner if inner in modules else node.module


def _between_packages(edges: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    pairs = {tuple(".".join(name.split(".")[:2]) for name in edge) for edge in edges}
    return {(first, second) for first, second in pairs if first != second and "." in second}


def count_circles(edges: Iterable[tuple[str, str]]) -> int:
    """Count the groups of modules that import each other in a circle."""
    edges = list(edges)
    names = sorted({name for edge in edges for name in edge})
    rows, columns = ([names.index(edge[side]) for edge in edges] for side in (0, 1))
    graph = coo_array((np.ones(len(edges)), (rows, columns)), shape=(len(names),) * 2)
    _, groups = connected_components(graph, connection="strong")
    return int((np.bincount(groups, minlength=1) > 1).sum())


# --- Duplicates -----------------------------------------------------------------------------------


def find_duplicates(modules: Modules) -> list[list[Place]]:
    """Find the runs of statements that stand a second time somewhere but for their variables.

    A run has at least `REPEATED_NODES` nodes of syntax; one within a longer one is left out.

    Returns:
        For each, its places.
    """
    places = defaultdict(list)
    for name, module in modules.items():
        for block in _blocks(module):
            described = [_describe(statement) for statement in block]
            for first, last in _runs(block):
                shapes, names = zip(*described[first:last], strict=True)
                names = [*chain(*names)]
                key = (shapes, *map(names.index, names))
                places[key].append((name, block[first].lineno, block[last - 1].end_lineno))
    repeated = [places for places in map(_apart, places.values()) if len(places) > 1]
    repeated.sort(key=lambda group: -(group[0][2] - group[0][1]))
    kept = []
    for group in repeated:
        if not any(_within(group, other) for other in kept):
            kept.append(group)
    return kept


def _blocks(module: ast.Module) -> Iterator[list[ast.stmt]]:
    """Every block within a function, once."""
    inside = {id(node): node for each in find_functions(module) for node in ast.walk(each)}
    for node in inside.values():
        for field in ("body", "orelse", "finalbody"):
            block = getattr(node, field, None)
            if isinstance(block, list):
                yield _without_docstring(block)


def _runs(block: list[ast.stmt]) -> Iterator[tuple[int, int]]:
    """Where the runs of a block that are long enough begin and end."""
    sizes = [sum(1 for _ in ast.walk(statement)) for statement in block]
    for first in range(len(block)):
        for last in range(first + 1, min(len(block), first + LONGEST_RUN) + 1):
            if sum(sizes[first:last]) >= REPEATED_NODES:
                yield first, last


def _describe(statement: ast.stmt) -> tuple[str, list[str]]:
    """The syntax of a statement without its variables, and the variables as they come."""
    text = ast.dump(statement)
    names = [name for name in VARIABLE.findall(text) if name not in KEPT_NAMES]
    blank = VARIABLE.sub(lambda name: name[0] if name[1] in KEPT_NAMES else "_", text)
    return blank, names


def _apart(places: list[Place]) -> list[Place]:
    """The places that do not overlap an earlier one."""
    kept: list[Place] = []
    for name, first, last in places:
        if not any(name == other and first <= end and last >= start for other, start, end in kept):
            kept.append((name, first, last))
    return kept


def _within(group: list[Place], other: list[Place]) -> bool:
    """Whether each place of a group lies within one of another."""
    return all(
        any(name == outer and start <= first and last <= end for outer, start, end in other)
        for name, first, last in group
    )


def _without_docstring(block: list[ast.stmt]) -> list[ast.stmt]:
    first = block[0] if block else None
    constant = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    return block[1:] if constant else block


# --- The suite ------------------------------------------------------------------------------------


def measure_suite(tree: Path, folders: Sequence[str]) -> dict[str, float]:
    """Run the tests of folders (all of them if none is named), each in its own process.

    Returns:
        The processor's seconds by the folder's name.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    tests = sorted(path for path in (tree / "tests").iterdir() if any(path.glob("**/test_*.py")))
    command = [sys.executable, "-m", "pytest", "-q", "-c", tree / "pyproject.toml"]
    return {
        path.name: measure_command([*command, path], environment).processor_seconds
        for path in tests
        if not folders or path.name in folders
    }


def make_parser() -> argparse.ArgumentParser:
    """Make the parser of the script's arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("result", type=Path, help="JSON file to write, or to add to")
    parser.add_argument("name", help="of the checkout in the file")
    parser.add_argument(
        "--tree", type=Path, default=ROOT, help="root of a checkout (default: this)"
    )
    parser.add_argument("--suite", nargs="*", metavar="FOLDER", help="run its tests, or some")
    return parser


def main() -> None:
    """Measure a checkout and put it into the file."""
    args = make_parser().parse_args()
    tree = args.tree.resolve()
    figures = read_json(args.result) or {}
    seconds = figures.get(args.name, {}).get("suite_seconds", {})
    if args.suite is not None:
        seconds |= measure_suite(tree, args.suite)
    figures[args.name] = {**measure_code(tree), "suite_seconds": seconds}
    write_json(args.result, figures)
    for group in find_duplicates(parse_modules(tree / "bids_cmb")):
        print(*(f"{name}:{first}-{last}" for name, first, last in group))


if __name__ == "__main__":
    main()
