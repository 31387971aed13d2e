"""Other groups' published networks: recognised, checked, and made detectors of ours.

SHIVA-CMB's weights (CC BY-NC-SA 4.0) lie behind a share and may not be passed on, so whoever holds
them installs them: ``bids-cmb models add``. Nothing in the files is run: HDF5 is read as
numbers, a SavedModel is looked through before TensorFlow loads it, and a descriptor that names a
script is refused.
"""

import hashlib
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from bids_cmb.files import load_json, write_json
from bids_cmb.imaging.grid import SHIVA
from bids_cmb.networks.builders import fuse_batchnorm
from bids_cmb.networks.external.keras_h5 import read_unet_h5
from bids_cmb.networks.external.tiled_unet import list_kernels
from bids_cmb.networks.loading import load_network
from bids_cmb.networks.model_cards import DETECTION, check_model_dir, load_card
from bids_cmb.networks.weights import check_weights, compute_digest, write_weights

Log = Callable[[str], None]
UNET = re.compile(r"Unet3Dv2-(\d+)\.(\d+)\.2-(\d+\.?\d*)")
MAX_UNPACKED_BYTES = (
    8 * 2**30
)  # bytes of an archive; the published ones have less than a tenth of it
SAVED = "saved_model.pb"
CITATION = {
    "text": "Tsuchida A, Goubet M, Boutinaud P, et al. SHIVA-CMB: a deep-learning-based robust "
    "cerebral microbleed segmentation tool trained on multi-source T2*GRE- and susceptibility-"
    "weighted MRI. Sci Rep 2024;14:30901.",
    "doi": "10.1038/s41598-024-81870-5",
}
LICENCE = "CC BY-NC-SA 4.0 (the weights; not for commercial use)"


@dataclass(frozen=True)
class Release:
    """A published set of networks, as its makers describe it.

    Attributes:
        name: Of the detector that it becomes.
        architecture: Their tag.
        folds: MD5 of each network under its published file name; of a folder, over the bytes of
            its files in the order of their paths.
    """

    name: str
    architecture: str
    folds: Mapping[str, str]


RELEASES = (
    Release(
        "shiva-v1",
        "Unet3Dv2-10.7.2-1.8",
        {
            "20230328-101347_Unet3Dv2-10.7.2-1.8-SWAN.CMB_fold_CMB_1x3-331_fold_0_model.h5":
                "cc5e9c4a75796020e63d54a9fb584abb",
            "20230330-095525_Unet3Dv2-10.7.2-1.8-SWAN.CMB_fold_CMB_1x3-331_fold_1_model.h5":
                "da32ad7ebd2f3944449009df27c81147",
            "20230329-221948_Unet3Dv2-10.7.2-1.8-SWAN.CMB_fold_CMB_1x3-331_fold_2_model.h5":
                "358e3bce66fe9e502862abf43e4bfb1f",
        },
    ),
    Release(
        "shiva-v2",
        "ResUnet3D-8.9.2-1.5",
        {
            "20250129-192041_ResUnet3D-8.9.2-1.5-SWAN.CMB_prod2_fold_0_bestvalloss.tf_inference":
                "a5ae990416b0149097e1698e2e28b00a",
            "20250129-195344_ResUnet3D-8.9.2-1.5-SWAN.CMB_prod2_fold_1_bestvalloss.tf_inference":
                "23fd23c83a9b30fe6dab7bef5f3277ce",
            "20250129-192041_ResUnet3D-8.9.2-1.5-SWAN.CMB_prod2_fold_2_bestvalloss.tf_inference":
                "667370eb8997718b4a8cd9e89d6c1bdd",
        },
    ),
)  # fmt: skip


def install_models(sources: Sequence[Path], models: Path, log: Log) -> list[str]:
    """Install published networks as detectors.

    Args:
        sources: A zip archive, a folder, or the networks one by one; any of them may hold a
            ``model_info.json``, SHIVA's descriptor.
        models: The folder of cards and weights; made if it is missing.
        log: Called with a line of progress.

    Returns:
        The detectors that can now be named.

    Raises:
        ValueError: If a source is not to be trusted, a network is missing, altered, of another
            kind, or none is recognised. Nothing is left behind in ``models``.
        OSError: If something cannot be read or written.
    """
    with _unpack(sources) as places:
        networks = {path: compute_md5(path) for path in _list_networks(places)}
        release, folds = _recognise(networks, list(_list_descriptors(places)))
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models, prefix=".adding-") as staging:
            members = [
                _make_member(f"fold-{number}", path, networks[path], release, Path(staging), log)
                for number, path in enumerate(folds)
            ]
            cards = [_make_card(release, members, rule) for rule in ("shiva", "shiva-readme")]
            for member in members:
                _replace(Path(staging) / member["weights"], models / member["weights"])
        for card in cards:
            write_json(models / f"{card['name']}.json", card)
    return [card["name"] for card in cards]


def verify_models(models: Path) -> dict[str, str]:
    """Find what is wrong with each detector of a folder; empty if all its weights are there.

    Raises:
        ValueError: If there is no such folder, or no card in it.
    """
    check_model_dir(models)
    names = sorted(path.stem for path in models.glob("*.json"))
    if not names:
        raise ValueError(f"{models}: a folder of models must hold model cards, .json; found none.")
    return {name: _find_fault(name, models) for name in names}


def _find_fault(name: str, models: Path) -> str:
    try:
        check_weights(name, load_card(name, models), models)
    except ValueError as error:
        return str(error)
    return ""


def compute_md5(path: Path) -> str:
    """Compute MD5 as SHIVA publishes it: of a folder, over its files one after the other."""
    files = (
        sorted(file_path for file_path in path.rglob("*") if file_path.is_file())
        if path.is_dir()
        else [path]
    )
    digest = hashlib.md5(usedforsecurity=False)
    for file_path in files:
        with file_path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()


# What is in the sources


@contextmanager
def _unpack(sources: Sequence[Path]) -> Iterator[list[Path]]:
    """Unpack archives among the sources for as long as they are needed."""
    with tempfile.TemporaryDirectory() as folder:
        places = []
        for number, source in enumerate(sources):
            if not source.exists():
                raise ValueError(f"{source}: a model to add must be there; there is none.")
            if source.is_file() and source.suffix.lower() == ".zip":
                place = Path(folder) / str(number)
                _unzip(source, place)
                places.append(place)
            else:
                places.append(source)
        yield places


def _unzip(archive: Path, folder: Path) -> None:
    """Unpack an archive in which every path stays inside, nothing is a link, and sizes are sane."""
    try:
        with zipfile.ZipFile(archive) as packed:
            entries = packed.infolist()
            for entry in entries:
                parts = Path(entry.filename.replace("\\", "/"))
                if parts.is_absolute() or ".." in parts.parts or ":" in entry.filename:
                    raise ValueError(
                        f"{archive}: paths in an archive must stay inside; "
                        f"found {entry.filename!r}."
                    )
                if entry.external_attr >> 28 == 0xA:
                    raise ValueError(
                        f"{archive}: an archive must hold files, no links; "
                        f"found {entry.filename!r}."
                    )
            size = sum(entry.file_size for entry in entries)
            if size > MAX_UNPACKED_BYTES:
                raise ValueError(
                    f"{archive}: an archive must unpack to at most "
                    f"{MAX_UNPACKED_BYTES // 2**30} GB; found {size / 2**30:.0f} GB."
                )
            packed.extractall(folder)  # never more than the sizes that were just added up
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(
            f"{archive}: an archive must be a zip that can be read; {error}."
        ) from error


def _list_networks(places: Sequence[Path]) -> Iterator[Path]:
    """List HDF5 files and SavedModel folders."""
    for place in places:
        if place.is_file():
            if place.suffix.lower() in (".h5", ".hdf5"):
                yield place
            elif place.name != "model_info.json":
                raise ValueError(
                    f"{place}: a model must be a zip, a folder, an .h5 file or a SavedModel; "
                    f"found {place.suffix or 'no suffix'}."
                )
        elif (place / SAVED).is_file():
            yield place
        else:
            yield from sorted(place.rglob("*.h5"))
            yield from sorted(file_path.parent for file_path in place.rglob(SAVED))


def _list_descriptors(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        if place.name == "model_info.json":
            yield place
        elif place.is_dir():
            yield from sorted(place.rglob("model_info*.json"))


# What it is


def _recognise(
    networks: Mapping[Path, str], descriptors: Sequence[Path]
) -> tuple[Release, list[Path]]:
    """Recognise the release of the networks, and its folds in order."""
    for release in RELEASES:
        if set(release.folds.values()) & set(networks.values()) or any(
            path.name in release.folds for path in networks
        ):
            return release, _match_folds(release, networks)
    if len(descriptors) > 1:
        raise ValueError(
            f"{descriptors[1]}: one model at a time; {descriptors[0]} describes another."
        )
    if descriptors:
        release = _read_descriptor(descriptors[0])
        return release, _match_folds(release, networks)
    if not networks:
        raise ValueError("A model to add must hold .h5 files or SavedModel folders; found none.")
    raise ValueError(
        f"{next(iter(networks))}: a network must be one that SHIVA-CMB has published, or have its "
        f"model_info.json beside it; found MD5 {next(iter(networks.values()))}."
    )


def _match_folds(release: Release, networks: Mapping[Path, str]) -> list[Path]:
    """Match networks to the folds of a release, every one there and none altered."""
    matched = []
    for name, digest in release.folds.items():
        same = [path for path, actual in networks.items() if actual == digest]
        named = [path for path in networks if path.name == Path(name).name]
        if same:
            matched.append(same[0])
        elif named:
            raise ValueError(
                f"{named[0]}: a network of {release.name} must have MD5 {digest}; "
                f"found {networks[named[0]]}. It was altered, or not fetched to the end."
            )
        else:
            raise ValueError(
                f"{release.name} has {len(release.folds)} networks, to be added together; "
                f"{Path(name).name} is missing."
            )
    return matched


def _read_descriptor(path: Path) -> Release:
    """Read a release from SHIVA's descriptor.

    Raises:
        ValueError: If it is no such descriptor, names a script, or a kind that we cannot build.
    """
    try:
        descriptor = load_json(path)
        folds = {str(file["name"]): str(file["md5"]).lower() for file in descriptor["files"]}
        version, architecture = str(descriptor["version"]), str(descriptor.get("architecture", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: a descriptor must be JSON with version and files (name, md5); {error!r}."
        ) from error
    if descriptor.get("script"):
        raise ValueError(
            f"{path}: a descriptor must not name a script, since code of a model is never run; "
            f"found {descriptor['script']!r}."
        )
    if not folds:
        raise ValueError(f"{path}: a descriptor must name at least one file; found none.")
    name = "shiva-" + re.sub(r"[^a-z0-9]+", "-", version.lower()).strip("-")
    if name in [release.name for release in RELEASES]:
        raise ValueError(
            f"{path}: the networks of {name} must be the published ones; found others of that "
            "version. Give them another."
        )
    return Release(name, architecture or next(iter(folds)), folds)


def parse_widths(tag: str) -> list[int]:
    """Parse the channels of each level from an architecture's tag: first, levels, growth.

    Raises:
        ValueError: If the tag is of another kind than SHIVA-CMB's first U-Net.
    """
    match = UNET.search(tag)
    if not match:
        raise ValueError(
            "A network in HDF5 must be a Unet3Dv2-FILTERS.LEVELS.2-GROWTH, the only kind that "
            f"can be rebuilt; found {tag!r}. A SavedModel can be of any kind."
        )
    first, levels, growth = int(match[1]), int(match[2]), float(match[3])
    widths = [first]
    while len(widths) < levels:
        widths.append(round(widths[-1] * growth))
    return widths


# What it becomes


def _make_member(
    name: str, path: Path, digest_md5: str, release: Release, folder: Path, log: Log
) -> dict:  # fmt: skip
    """Make a member of a card, its weights in ``folder``, loaded once to see that it works."""
    grid = {key: value for key, value in asdict(SHIVA).items() if value is not None}
    if path.is_dir():
        weights = f"{release.name}-{name}"
        shutil.copytree(path, folder / weights, symlinks=True)
        linked = [file for file in (folder / weights).rglob("*") if file.is_symlink()]
        if linked:
            raise ValueError(f"{path}: a SavedModel must hold files, no links; {linked[0].name}.")
        digest = compute_digest(folder / weights)
        built = {"builder": "savedmodel", "arguments": {}}
    else:
        weights = f"{release.name}-{name}.npz"
        widths = parse_widths(release.architecture)
        arrays = read_unet_h5(path, list_kernels(widths))
        digest = write_weights(folder / weights, fuse_batchnorm(arrays), dtype=np.float32)
        built = {"builder": "shiva", "arguments": {"widths": widths}}
    member = {"name": name, **built, "grid": grid, "weights": weights, "sha256": digest}
    load_network(member, folder / weights)
    log(f"{name}: {path.name}, read and checked")
    return {**member, "source": {"file": path.name, "md5": digest_md5}}


def _make_card(release: Release, members: list[dict], rule: str) -> dict:
    """Make the card of a detector, with one of the makers' two rules of intensity."""
    literal = rule == "shiva-readme"
    scaled = "the 99th percentile of the brain at 1" if literal else "as SHiVAi scales them"
    return {
        "name": f"{release.name}-readme" if literal else release.name,
        "task": DETECTION,
        "description": f"The mean of {len(members)} networks of SHIVA-CMB ({release.name}, "
        f"{release.architecture}) on voxels of 1 mm, intensities {scaled}.",
        "citation": [CITATION],
        "licence": LICENCE,
        "training": "By its makers, on real scans, those of VALDO's training set among them.",
        "threshold": 0.5,
        "definite_threshold": 0.5,
        "threshold_reason": "Its makers'; they do not grade lesions, so every one is definite.",
        "min_volume_mm3": 0.0,
        "memory_mb": 3500,
        "members": [
            {**member, "grid": {**member["grid"], "intensity": rule}} for member in members
        ],
    }


def _replace(new: Path, old: Path) -> None:
    """Put a file or folder in its place, where another one may be."""
    if old.is_dir():
        shutil.rmtree(old)
    new.replace(old)
