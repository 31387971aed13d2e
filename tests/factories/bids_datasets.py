"""BIDS datasets of phantoms."""

import json


def begin_dataset(root, name):
    """Begin a dataset: its folder and description."""
    root.mkdir(exist_ok=True)
    about = {"Name": name, "BIDSVersion": "1.11.1", "Authors": ["A", "B"]}
    (root / "dataset_description.json").write_text(json.dumps(about))


def place_scan(root, stem, sidecar):
    """Write the sidecar of a scan, named by its path without ending; the path of its image."""
    path = root / f"{stem}.nii.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / f"{stem}.json").write_text(json.dumps(sidecar))
    return path
