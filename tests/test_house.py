"""The house rule: a room imports only from the floors below its own."""

import ast
from pathlib import Path

import pytest

import bids_cmb

HOUSE = Path(bids_cmb.__file__).parent

FLOORS = [  # from the ground up; a folder is one room
    {"files"},
    {"exits", "sidecars", "filters", "lattices", "cards", "models", "mars"}
    | {"provenance", "staged", "foreign", "savedmodels", "sheets"},
    {"imports"},
    {"markers", "attempts"}
    | {"volume", "config", "discovery", "execution", "validation", "weights"},
    {"brain", "lesions", "candidates", "matching", "agreement", "dask_cluster", "descriptor"}
    | {"physics", "tissues", "protocols", "preprocessing", "networks", "given", "registration"}
    | {"growing", "reckoning"},
    {"boxes", "phase", "anatomy", "evidence"},
    {"cascade", "distilled", "gated"},  # designs of detectors
    {"proposals"},
    {"two_stage"},
    {
        "detectors",
        "derivatives",
        "boilerplate",
        "quality",
        "labelmaps",
        "training_report",
        "published",
        "own_models",
        "group_map",
    }
    | {"heads", "terrain"},
    {"regions", "tissue"},
    {"templates"},
    {"reviews", "view", "tabulation", "familiarity", "overlays"},
    {"report", "pictures", "settled"},
    {"scoring", "marks", "made_head", "bodies", "laws", "cases"},
    {"fates", "scorecard", "scanner", "vessels", "contrasts"},
    {"truth", "sources", "segmentations", "tallies", "lessons", "learning"},
    {"marked"},
    {"loading", "scan_anatomy", "locations"},
    {"inputs"},
    {"outputs"},
    {"participant", "group", "simulation", "evaluation", "training", "importing", "reviewing"},
    {"cohort", "comparison", "release"},
    {"app", "api"},
    {"selftest"},
    {"cli", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
HOMES = {  # a library, and the only rooms that may name it
    "tensorflow": {"networks", "training", "savedmodels"},
    "h5py": {"foreign", "imports"},
    "openpyxl": {"sheets"},
    "keras": {"models", "networks", "training", "lessons", "learning"},
    "bids": {"discovery"},
    "matplotlib": {"training_report", "group_map"},
    "templateflow": {"templates"},
    "SimpleITK": {"registration"},
    "jinja2": {"report"},
    "PIL": {"pictures"},
    "argparse": {"cli", "__main__", "descriptor"},
    "distributed": {"dask_cluster"},
    "nibabel": {"volume", "preprocessing", "physics", "scanner", "cases"} | {"registration"},
}


def room_of(path):
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports():
    """Every (room, name it imports), the imports inside functions too."""
    for path in HOUSE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from ((room_of(path), alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path.name}: write imports from bids_cmb in full"
                yield from ((room_of(path), f"{node.module}.{alias.name}") for alias in node.names)


def test_every_room_has_a_floor():
    assert {room_of(path) for path in HOUSE.rglob("*.py")} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize(("room", "name"), sorted(set(imports())))
def test_imports_point_down_and_libraries_stay_at_home(room, name):
    library, *rest = name.split(".")
    if library == "bids_cmb" and rest and rest[0] in FLOOR and rest[0] != room:
        assert FLOOR[rest[0]] < FLOOR[room], f"{room} may not look up to {rest[0]}"
    assert room in HOMES.get(library, {room}), f"{library} lives in {sorted(HOMES[library])}"
