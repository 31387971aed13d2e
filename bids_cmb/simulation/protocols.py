"""Acquisition protocols: of known studies, from files, and random ones between them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from bids_cmb.files import load_object
from bids_cmb.resource_files import load_resource

CONTRASTS, KINDS = ("T2starw", "swi"), ("2D", "3D")


@dataclass(frozen=True)
class Protocol:
    """Describe how a scan is acquired.

    Attributes:
        name: What to call it.
        contrast: ``T2starw`` (magnitude) or ``swi`` (magnitude and phase).
        field_t: T, 0.2 to 12.
        echo_time_s: s.
        repetition_time_s: s.
        flip_deg: Degrees.
        spacing: mm between voxels, that between slices last.
        kind: ``2D``, slice by slice, or ``3D``, a slab.
        thickness: mm, of a slice; by default the distance between slices.
        interpolation: 2 if the scanner shows twice as many pixels as it measured, else 1.
        tilt_deg: How far slices lean to the front or the back, at most.
        snr: Least and most of white matter's signal over the noise's standard deviation.
        manufacturer: For the sidecar.
    """

    name: str
    contrast: str
    field_t: float
    echo_time_s: float
    repetition_time_s: float
    flip_deg: float
    spacing: tuple[float, float, float]
    kind: str
    thickness: float = 0.0
    interpolation: int = 1
    tilt_deg: float = 10.0
    snr: tuple[float, float] = (18.0, 35.0)
    manufacturer: str = "Siemens"

    def __post_init__(self):
        """Check that the protocol is possible.

        Raises:
            ValueError: One sentence, naming the protocol, the rule and what was found.
        """
        object.__setattr__(self, "spacing", tuple(float(side) for side in self.spacing))
        object.__setattr__(self, "snr", tuple(float(end) for end in self.snr))
        if not self.thickness and len(self.spacing) == 3:
            object.__setattr__(self, "thickness", self.spacing[2])
        for name, rule, satisfied in self._rules():
            if not satisfied:
                raise ValueError(
                    f"Protocol {self.name}: {rule}; found {name} {getattr(self, name)!r}."
                )

    def _rules(self) -> Iterator[tuple[str, str, bool]]:
        yield (
            "contrast",
            f"the contrast must be {' or '.join(CONTRASTS)}",
            self.contrast in CONTRASTS,
        )
        yield "kind", f"slices must be {' or '.join(KINDS)}", self.kind in KINDS
        yield "field_t", "the field must lie between 0.2 and 12 T", 0.2 <= self.field_t <= 12
        yield "echo_time_s", "the echo time must be above 0 s", self.echo_time_s > 0
        yield (
            "repetition_time_s",
            "the repetition time must be no shorter than half the echo time",
            self.repetition_time_s >= self.echo_time_s / 2,  # echo-shifted sequences exist
        )
        yield (
            "flip_deg",
            "the flip angle must lie between 0 and 180 degrees",
            0 < self.flip_deg < 180,
        )
        yield (
            "spacing",
            "voxels must be three numbers between 0.2 and 10 mm",
            len(self.spacing) == 3 and all(0.2 <= side <= 10 for side in self.spacing),
        )
        yield "thickness", "slices must be thicker than 0.2 mm", self.thickness >= 0.2
        yield (
            "interpolation",
            "pixels are shown once or twice as fine",
            self.interpolation in (1, 2),
        )
        yield "snr", "the signal must be above the noise", len(self.snr) == 2 and min(self.snr) > 1


def load_presets() -> dict[str, Protocol]:
    """Load the protocols that come with the package, by name."""
    presets = load_resource("simulation/protocols.json")
    return {name: Protocol(name=name, **settings) for name, settings in presets.items()}


def resolve_protocols(names: Sequence[str]) -> list[Protocol | None]:
    """Resolve protocols by name, or from JSON files of them.

    Args:
        names: Names of presets, paths of JSON files (an object by name, as
            ``resources/simulation/protocols.json`` is), or ``random`` for one between the presets
            each time.

    Returns:
        In the order of ``names``; None for ``random``.

    Raises:
        ValueError: If a name is unknown or a file holds no protocols.
        OSError: If a file cannot be read.
    """
    known, protocols = load_presets(), []
    for name in names:
        if name.endswith(".json"):
            protocols += _read_protocols(Path(name))
        elif name in known:
            protocols.append(known[name])
        elif name == "random":
            protocols.append(None)
        else:
            raise ValueError(
                f"A protocol must be a JSON file, random, or one of {', '.join(known)}; "
                f"found {name!r}."
            )
    return protocols


def _read_protocols(path: Path) -> list[Protocol]:
    content = load_object(path, "a file of protocols")
    names = {part.name for part in fields(Protocol)} - {"name"}
    protocols = []
    for name, settings in content.items():
        if not isinstance(settings, dict):
            raise ValueError(
                f"{path}: protocol {name} must be a JSON object; found {settings!r:.60}."
            )
        if unknown := sorted(set(settings) - names):
            raise ValueError(
                f"{path}: protocol {name} may only have {', '.join(sorted(names))}; "
                f"found {', '.join(unknown)}."
            )
        try:
            protocols.append(Protocol(name=name, **settings))
        except TypeError as error:
            missing = sorted({"contrast", "kind", "spacing"} - set(settings)) or [str(error)]
            raise ValueError(
                f"{path}: protocol {name} is not complete or not of numbers; "
                f"found a fault in {', '.join(missing)}."
            ) from error
    return protocols


def sample_protocol(rng: np.random.Generator) -> Protocol:
    """Sample a protocol between two presets of one contrast and kind."""
    known = list(load_presets().values())
    first = known[rng.integers(len(known))]
    similar = [
        second for second in known if (second.contrast, second.kind) == (first.contrast, first.kind)
    ]
    second = similar[rng.integers(len(similar))]
    share = rng.uniform()

    def between(name: str) -> float:
        return float(getattr(first, name) ** (1 - share) * getattr(second, name) ** share)

    # Blooming goes with the product of field and echo time, and so do those who choose them.
    echo = between("echo_time_s") * between("field_t") / first.field_t
    pixel, gap = (
        first.spacing[axis] ** (1 - share) * second.spacing[axis] ** share for axis in (0, 2)
    )
    return replace(
        first,
        name="random",
        echo_time_s=round(echo, 4),
        repetition_time_s=round(max(between("repetition_time_s"), echo + 0.004), 4),
        flip_deg=round(between("flip_deg"), 1),
        spacing=(round(pixel, 3), round(pixel, 3), round(gap, 2)),
        thickness=round(gap * first.thickness / first.spacing[2] * rng.uniform(0.85, 1), 2),
        interpolation=int(rng.integers(1, 3)),
        tilt_deg=12.0,
        manufacturer=second.manufacturer,
    )
