"""The input grid of a network, as its model card defines it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from bids_cmb.files import is_number
from bids_cmb.imaging.intensity import INTENSITIES


@dataclass(frozen=True)
class Grid:
    """The input grid of a network, as its model card defines it.

    The axes of the scan are kept (nothing is rotated, so no slice bleeds into its neighbour); they
    are only put in order, pointed to right, anterior and superior, and resampled.

    Attributes:
        spacing: Voxel size in mm along each axis; None leaves that axis of the scan as it is, and
            so does a scan that differs by less than 1 %.
        axes: ``ras``: nearest to left–right, posterior–anterior, inferior–superior.
            ``slices``: in-plane axes first, the axis along which slices are stacked last.
        finest: Where ``spacing`` leaves an axis as it is: mm that smaller voxels are widened to.
        conform: Voxels of a fixed field of view laid about the middle voxel of the scan before
            anything else, as FreeSurfer and SHIVA do; what lies outside is lost. None: the scan's.
        shape: Voxels of the input, cropped about the brain's centre of mass.
        multiple: Where ``shape`` is None: the input's voxels are a multiple of these.
        margin: Where ``shape`` is None: mm kept around the brain; None keeps the field of view.
        headroom: Where ``shape`` is given: if the brain pokes out of the box's top, the box moves
            up until its end lies this many voxels above the topmost slice of the brain.
        order: Of the spline: 0 nearest voxel, 1 linear, 3 cubic. Where voxels get larger, 1
            averages over the new voxel; 3 does not, and neither does 0.
        intensity: The name of a rule in ``INTENSITIES``.
        masked: Whether voxels outside the brain are 0.
    """

    spacing: tuple[float | None, float | None, float | None] = (None, None, None)
    axes: str = "ras"
    finest: float | None = None
    conform: tuple[int, int, int] | None = None
    shape: tuple[int, int, int] | None = None
    multiple: tuple[int, int, int] = (1, 1, 1)
    margin: float | None = None
    headroom: int | None = None
    order: int = 1
    intensity: str = "none"
    masked: bool = False

    def __post_init__(self):
        """Check that the grid is possible.

        Raises:
            ValueError: If an attribute is not of its kind, or two of them contradict each other.
        """
        for name, (holds, rule) in _RULES.items():
            value = getattr(self, name)
            if not holds(value):
                raise ValueError(f"`{name}` of a grid must be {rule}. Received: {value!r}.")
        if self.conform and None in self.spacing:
            raise ValueError(
                "`conform` of a grid needs a `spacing` in mm along each axis. "
                f"Received: spacing={self.spacing}."
            )
        if self.shape and (self.margin is not None or self.multiple != (1, 1, 1)):
            raise ValueError(
                "`shape` of a grid leaves nothing for `margin` and `multiple` to say. "
                f"Received: margin={self.margin}, multiple={self.multiple}."
            )
        if self.headroom is not None and not self.shape:
            raise ValueError(
                "`headroom` of a grid needs a `shape`: without one the box holds the whole brain. "
                f"Received: headroom={self.headroom}."
            )

    @classmethod
    def from_card(cls, card: Mapping) -> "Grid":
        """Read a grid from a model card.

        Args:
            card: As JSON gives it: lists for tuples; one number for three equal ones in
                ``spacing`` and ``multiple``; null for None.

        Returns:
            The grid; what the card leaves out has its default.

        Raises:
            ValueError: If the card has a key or a value that a grid does not know.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(card) - set(known))
        if unknown:
            raise ValueError(
                f"The card of a grid may hold {', '.join(known)}. Received: {', '.join(unknown)}."
            )
        values = {name: tuple(v) if isinstance(v, list) else v for name, v in card.items()}
        for name in ("spacing", "multiple"):
            if name in values and not isinstance(values[name], tuple):
                values[name] = (values[name],) * 3
        return cls(**values)


def _is_triple(value: object, holds: Callable[[object], bool]) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(map(holds, value))


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


_RULES: dict[str, tuple[Callable[[object], bool], str]] = {
    "spacing": (
        lambda v: _is_triple(v, lambda mm: mm is None or (is_number(mm) and mm > 0)),
        "three sizes in mm above 0, each of them a number or null",
    ),
    "finest": (lambda v: v is None or (is_number(v) and v > 0), "a size in mm above 0, or null"),
    "axes": (lambda v: v in ("ras", "slices"), "`ras` or `slices`"),
    "conform": (
        lambda v: v is None or _is_triple(v, _is_count),
        "three numbers of voxels, or null",
    ),
    "shape": (lambda v: v is None or _is_triple(v, _is_count), "three numbers of voxels, or null"),
    "multiple": (lambda v: _is_triple(v, _is_count), "three numbers of voxels"),
    "margin": (lambda v: v is None or (is_number(v) and v >= 0), "0 mm or more, or null"),
    "headroom": (lambda v: v is None or _is_count(v), "a number of voxels above 0, or null"),
    "order": (lambda v: type(v) is int and v in (0, 1, 3), "0, 1 or 3"),
    "intensity": (
        lambda v: isinstance(v, str) and v in INTENSITIES,
        f"one of {', '.join(INTENSITIES)}",
    ),
    "masked": (lambda v: isinstance(v, bool), "true or false"),
}
SHIVA = Grid(
    spacing=(1.0, 1.0, 1.0),
    conform=(256, 256, 256),
    shape=(160, 214, 176),
    headroom=5,
    order=3,
    intensity="shiva",
)
