"""Views of a patch: as it is, flipped, enlarged, of more contrast; their predictions are averaged.

Test-time augmentation: a network that is sure of a lesion in one size or one contrast only is less
sure of it in the mean.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from bids_cmb.detection.proposals import ANATOMY_FROM, CHANNELS, mask_hidden
from bids_cmb.imaging.protocol_kinds import PROTOCOL_KINDS, classify_protocol
from bids_cmb.imaging.resampling import compute_linear_weights
from bids_cmb.networks.model_cards import VIEW_KEYS

IMAGE = CHANNELS.index("image")


@dataclass(frozen=True, eq=False)
class View:
    """One view of a classifier on its patches.

    Attributes:
        axes: Of the image, that are flipped.
        zoom: By which slices are enlarged about the middle voxel, 1 or more.
        exponent: Of the image, in brain medians: above 1 dark is darker.
        channels: Factors of the channels of a patch, 0 if hidden; float32 (C,).
        features: Factors of the features of a place, likewise.
        share: Of the view in the mean.
    """

    axes: tuple[int, ...]
    zoom: float
    exponent: float
    channels: np.ndarray
    features: np.ndarray
    share: float

    def render(self, patches: np.ndarray) -> np.ndarray:
        """Render patches, (B, X, Y, Z, C), as they look in this view, float32."""
        seen = enlarge_slices(patches.astype(np.float32), self.zoom)
        if self.exponent != 1:
            seen[..., IMAGE] = np.maximum(seen[..., IMAGE], 0) ** np.float32(self.exponent)
        return np.flip(seen, [axis + 1 for axis in self.axes]) * self.channels


def select_for_protocol(card: Mapping, spacing: Sequence[float]) -> dict:
    """Select the members and the views that a card has for the protocol of a scan.

    Args:
        card: ``views_for`` lists the kinds of protocol, as `classify_protocol` has them, for which
            zooms and exponents hold, and ``protocol_kinds`` of a member those that it is used for;
            all without.
        spacing: Voxel size of the scan, mm.
    """
    kind = classify_protocol(spacing)
    hidden = () if kind in card.get("views_for", PROTOCOL_KINDS) else VIEW_KEYS
    members = [
        {key: value for key, value in member.items() if key not in hidden}
        for member in card["members"]
        if kind in member.get("protocol_kinds", PROTOCOL_KINDS)
    ]
    return {**card, "members": members}


def list_views(member: Mapping) -> Iterator[View]:
    """List the views of a classifier by its entry on the card.

    Every zoom, flip and exponent is combined with every other: ``zooms``, ``flips`` and
    ``exponents`` name those besides the patch as it is. ``blind`` is the share of views without the
    anatomy, ``hidden`` what is hidden in all of them.
    """
    flips = [(), *map(tuple, member.get("flips", ()))]
    zooms, exponents = ([1.0, *member.get(key, ())] for key in VIEW_KEYS)
    blind = member.get("blind", 0.0)
    channels, features = mask_hidden(member.get("hidden", ()))
    without_anatomy = features * (np.arange(len(features)) < ANATOMY_FROM)
    count = len(flips) * len(zooms) * len(exponents)
    for axes, zoom, exponent in product(flips, zooms, exponents):
        for mask, share in ((features, 1 - blind), (without_anatomy, blind)):
            if share > 0:
                yield View(axes, zoom, exponent, channels, mask, share / count)


def enlarge_slices(patches: np.ndarray, zoom: float) -> np.ndarray:
    """Enlarge the slices of patches about their middle voxel, ``shape // 2``, linearly.

    Args:
        patches: float32 (B, X, Y, Z, C).
        zoom: 1 or more.

    Returns:
        Of the same shape; the patches themselves where nothing is to be enlarged.
    """
    if zoom == 1:
        return patches
    for axis in (1, 2):
        size = patches.shape[axis]
        positions = (np.arange(size) - size // 2) / zoom + size // 2
        weights = compute_linear_weights(positions, size)
        patches = np.moveaxis(np.tensordot(weights, patches, axes=(1, axis)), 0, axis)
    return patches
