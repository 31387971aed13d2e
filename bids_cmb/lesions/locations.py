"""Locations of lesions: structure, side, position in MNI space, region of MARS, and parcel."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from bids_cmb.anatomy.atlases import Atlases, find_parcel
from bids_cmb.anatomy.mni_fit import MAX_MNI_UNCERTAINTY_MM
from bids_cmb.anatomy.region_map import MarsRegion, locate_region
from bids_cmb.anatomy.segmentation import AnatomicalLocation, Anatomy, locate_structures
from bids_cmb.imaging.volume import Volume
from bids_cmb.lesions.measure import Lesion


def list_position_notes(lesions: Iterable[Lesion]) -> tuple[str, ...]:
    """List what the log says of uncertain MNI positions: one sentence, or none."""
    known = [lesion.mni_uncertainty_mm for lesion in lesions if lesion.mni_uncertainty_mm]
    poor = [uncertainty for uncertainty in known if uncertainty > MAX_MNI_UNCERTAINTY_MM]
    if not poor:
        return ()
    return (
        f"MNI positions of {len(poor)} of {len(known)} lesions are uncertain by more than "
        f"{MAX_MNI_UNCERTAINTY_MM:g} mm (up to {max(poor):.1f} mm).",
    )


def locate_lesions(
    lesions: Iterable[Lesion],
    anatomy: Anatomy,
    regions: Volume,
    *,
    classes: Sequence[dict],
    atlases: Atlases,
    exclude_flags: Sequence[str] = ("large",),
) -> list[Lesion]:
    """Locate the centre of each lesion in the anatomy.

    Args:
        lesions: As `lesions.measure.find_lesions` gives them.
        anatomy: Of the head.
        regions: Of MARS, on the grid of the anatomy, from `anatomy.region_map.build_region_map`.
        classes: Of the anatomy network's card.
        atlases: Of parcels.
        exclude_flags: Flags that exclude a lesion from the counts; only here is ``csf`` known.

    Returns:
        The same lesions in the same order.
    """
    lesions = list(lesions)
    centres = [lesion.centre for lesion in lesions]
    nearby = [locate_region(regions, centre, anatomy.midline) for centre in centres]
    located = []
    for lesion, place, region in zip(
        lesions, locate_structures(anatomy, centres, classes), nearby, strict=True
    ):
        parcel = find_parcel(place.mni, region.territory, region.name, atlases)
        located.append(replace(_with_location(lesion, place, region, exclude_flags), parcel=parcel))
    return located


def _with_location(
    lesion: Lesion, place: AnatomicalLocation, region: MarsRegion, exclude_flags: Sequence[str]
) -> Lesion:
    flags = lesion.flags if region.distance_mm == 0 else (*lesion.flags, "csf")
    return replace(
        lesion,
        flags=flags,
        included=not set(flags) & set(exclude_flags),
        region=place.structure,
        side=place.side,
        mni=place.mni,
        mni_uncertainty_mm=place.mni_uncertainty_mm,
        territory=region.territory,
        mars=region.name,
        nearest_other_mars=region.next_name,
        nearest_other_mars_mm=region.next_distance_mm,
        nearest_other_territory=region.next_territory,
        nearest_other_territory_mm=region.next_territory_mm,
        left=region.left,
    )
