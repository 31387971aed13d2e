"""Methods section of a paper, for a run as it was done."""

from bids_cmb import __version__

REFERENCES = (
    "Gregoire SM, Chaudhary UJ, Brown MM, et al. The Microbleed Anatomical Rating Scale (MARS): "
    "reliability of a tool to map brain microbleeds. Neurology 2009;73:1759-1766. "
    "doi:10.1212/WNL.0b013e3181c34a7d",
    "Gorgolewski KJ, Alfaro-Almagro F, Auer T, et al. BIDS apps: improving ease of use, "
    "accessibility, and reproducibility of neuroimaging data analysis methods. PLoS Comput Biol "
    "2017;13:e1005209. doi:10.1371/journal.pcbi.1005209",
)
DEEP_WHITE_MATTER_SOURCE = (
    "Chen J, Mikheev AV, Yu H, et al. Bilateral distance partition of periventricular and deep "
    "white matter hyperintensities: performance of the method in the aging brain. Acad Radiol "
    "2021;28:1699-1708. doi:10.1016/j.acra.2020.07.039"
)
DEEP_WHITE_MATTER = (
    "White matter counts as deep within 10 mm of a lateral ventricle (--deep-wm-distance-mm) if "
    "the cortex is farther away, as periventricular white matter is distinguished (Chen et al. "
    "2021), and within 4 mm of a deep nucleus."
)
TERRITORY_DEFINITION = (
    "Lesions in cortex, subcortical white matter, hippocampus or amygdala are called lobar; those "
    "in deep grey matter, capsules, deep or periventricular white matter deep; those in brainstem "
    f"or cerebellum infratentorial, after MARS [1]. {DEEP_WHITE_MATTER[:-1]} [3]. MNI positions "
    "come from an affine that lays the structures over those of a mean head."
)


def describe_methods(
    cards: list[dict], settings: dict, *, thresholds: dict, brain: str, anatomy: dict | None = None
) -> str:
    """Describe a run in the words of a methods section, with its references, as Markdown.

    Args:
        cards: Of the detectors that ran.
        settings: Those on which results depend, as ``config.result_settings`` gives them.
        thresholds: ``threshold``, ``definite`` (probabilities) and ``min_volume`` (mm³) as used.
        brain: A sentence on the source of the brain masks.
        anatomy: Card of the network that segmented the anatomy, if any.
    """
    all_cards = [*cards, *([anatomy] if anatomy else [])]
    references = [
        *REFERENCES,
        *([DEEP_WHITE_MATTER_SOURCE] if anatomy else []),
        *(
            _format_citation(citation)
            for card in all_cards
            for citation in card.get("citation", ())
        ),
    ]
    sentences = [
        f"Cerebral microbleeds were sought with bids_cmb {__version__} on SWI or T2*-weighted "
        "scans.",
        brain,
        *(f"Detector `{card['name']}`: {card['description']}" for card in cards),
        "The probabilities of the detectors were averaged on the scan's grid, each mapped "
        "piecewise linearly to a scale on which the detector's own threshold is 0.5."
        if len(cards) > 1
        else "",
        f"Voxels with a probability of at least {thresholds['threshold']:g} that touch by face, "
        "edge or corner were taken as one lesion, and lesions below "
        f"{thresholds['min_volume']:g} mm³ dropped.",
        f"A lesion whose highest probability reaches {thresholds['definite']:g} is called "
        "definite, any other possible, after the two grades of MARS [1].",
        f"{anatomy['description']} {TERRITORY_DEFINITION}" if anatomy else "",
        _describe_exclusions(settings["exclude_flags"]),
        "Sizes are those at half the depth of each lesion's own profile, blooming included. "
        "Results are BIDS derivatives [2]. "
        "They are for research, and were not reviewed by a person unless stated elsewhere.",
    ]
    numbered = [f"{number}. {text}" for number, text in enumerate(references, start=1)]
    paragraph = " ".join(filter(None, sentences))
    return "\n".join(["# Methods", "", paragraph, "", "# References", "", *numbered, ""])


def _format_citation(citation: dict) -> str:
    return f"{citation['text']} doi:{citation['doi']}"


def _describe_exclusions(exclude_flags: list[str]) -> str:
    if not exclude_flags:
        return "Every lesion was counted."
    return (
        f"Lesions flagged as {' or '.join(exclude_flags)} were listed but excluded from the counts."
    )
