"""Read the files that come with the package, in ``resources/``."""

import json
from importlib.resources import files

RESOURCES = files("bids_cmb") / "resources"


def read_resource(name: str) -> str:
    """Read a text file of the package's resources, such as ``templates/base.html``."""
    return RESOURCES.joinpath(name).read_text("utf-8")


def load_resource(name: str) -> dict:
    """Load a JSON file of the package's resources."""
    return json.loads(read_resource(name))
