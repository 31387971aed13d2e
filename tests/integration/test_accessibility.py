"""Pages for everyone: what axe-core holds against them, and what is reached by keys alone."""

import shutil

import numpy as np
import pytest
from accessibility import AXE, WHY_NO_AXE, find_faults
from browser import CHROMIUM, WHY_NOT
from running import QUICK, no_other_process
from sessions import TURNED, scanned, write_sessions

from bids_cmb.bids.tables import read_columns, read_table
from bids_cmb.cli.commands import main as run_command
from bids_cmb.cli.run import main
from bids_cmb.report import html
from bids_cmb.report.html import Cohort, write_group_page, write_page
from bids_cmb.training.figures import Report, write_report

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason=WHY_NOT),
    pytest.mark.skipif(AXE is None, reason=WHY_NO_AXE),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory, reported):
    """A page of every kind: of a participant with lesions, without, with sessions, and so on."""
    words, out = reported
    copy = tmp_path_factory.mktemp("pages") / "out"
    shutil.copytree(out, copy)
    words = [words[0], str(copy), *words[2:]]
    with no_other_process():
        assert main([*words, *QUICK, "--report", "interactive", "--reports-only"]) == 0
    made = {"lesions": copy / "sub-01.html", "none": copy / "sub-02.html"}
    rows = read_table(copy / "group_microbleeds.tsv")
    agreement = [dict.fromkeys(read_columns("agreement"), "0") | {"reader_1": "A", "reader_2": "B"}]
    failed = {**rows[0], "status": "failed", "n_cmb": None, "reason": "it is damaged"}
    many = [{**rows[0], "n_cmb": str(number % 7)} for number in range(9)]
    (copy / "cohort").mkdir()
    write_group_page(copy / "cohort", Cohort([*many, failed], agreement=agreement), "none.png")
    made["cohort"] = copy / "cohort/group_microbleeds.html"
    made["evaluation"] = copy / "evaluation/evaluation.html"
    assert run_command(["evaluate", str(copy), str(copy), str(copy / "evaluation")]) == 0
    made["training"] = copy / "report.html"
    write_report(made["training"], make_report())
    sessions = copy.with_name("sessions")
    shutil.copytree(copy, sessions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html, "MAX_SESSIONS_PER_PAGE", 0)
        made["sessions"] = write_page(sessions, "01")
    followed = follow_a_person(tmp_path_factory.mktemp("followed"))
    made["followed"] = followed / "sub-01.html"
    made["cohort over time"] = followed / "group_microbleeds.html"
    return made


def follow_a_person(root):
    """Run both levels on a person with a lesion that stays, one that fades and one that comes."""
    stays, fades, comes = (20.0, 10.0, 5.0), (-25.0, 0.0, 15.0), (5.0, -30.0, -10.0)
    scans = {
        1: scanned(1, [stays, fades]),
        2: scanned(1, [stays, comes], motion=TURNED, noise=2),
    }
    stem = "sub-01/ses-{0}/anat/sub-01_ses-{0}_T2starw"
    raw = write_sessions(root / "raw", {stem.format(n): scan for n, scan in scans.items()})
    flags = [*QUICK, "--threshold", "0.3", "--skip-brain-extraction"]
    with no_other_process():
        assert main([str(raw), str(root / "out"), "participant", "group", *flags]) == 0
    return root / "out"


def make_report():
    """A report of a training of two epochs, with examples."""
    losses = ((1, 0.9, 0.95), (2, 0.5, 0.6))
    curves = [dict(zip(("epoch", "loss", "val_loss", "hours"), (*row, 0.1), strict=True))
              for row in losses]  # fmt: skip
    patches = np.zeros((6, 8, 8, 4), np.float32)
    patches[:, 3:5, 3:5, 2] = 1
    examples = (patches, patches, patches)
    return Report("ensemble-c", "Two scans.", "A minute.", curves, examples, ["bids-cmb models"])


KINDS = (
    "lesions", "none", "cohort", "evaluation", "sessions", "training", "followed",
    "cohort over time",
)  # fmt: skip


def test_a_person_who_was_followed_has_lesions_over_time_on_both_pages(pages):
    """Axe would hold nothing against a section that is not there."""
    assert "New: 1" in pages["followed"].read_text("utf-8")
    assert '<table id="pairs"' in pages["cohort over time"].read_text("utf-8")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", KINDS)
def test_axe_holds_nothing_against_a_page(pages, page, kind, scheme):
    """With everything unfolded; in the scheme of the reader."""
    page.emulate(prefers_color_scheme=scheme)
    page.go(pages[kind].as_uri())
    page.run("document.querySelectorAll('details').forEach(fold => { fold.open = true; })")
    assert not find_faults(page)


def test_axe_holds_nothing_against_the_open_viewer(pages, page):
    page.go(pages["lesions"].as_uri())
    page.run("visit(about.scans[0], about.scans[0].lesions[0]).then(() => 1)")
    page.press("a")
    assert not find_faults(page)


def test_every_control_of_a_page_is_reached_by_the_tab_key(pages, page):
    """Chromium is the truth: it moves the focus; "Load review" is among its places."""
    page.go(pages["lesions"].as_uri())
    controls = page.run(
        "[...document.querySelectorAll('button, input, summary, a[href], .lesion')]"
        ".filter(e => e.checkVisibility()).map((e, at) => { e.dataset.at = at; return ["
        "at, e.type === 'radio' ? e.name : '']; })"
    )
    reached = set()
    for _ in range(len(controls) + 1):
        page.press("Tab")
        reached.add(page.run("document.activeElement.dataset.at"))
    one_of_each = {group: str(at) for at, group in reversed(controls) if group}
    wanted = {str(at) for at, group in controls if not group} | set(one_of_each.values())
    assert page.run("document.querySelector('#load').dataset.at") in reached
    assert not wanted - reached


def test_a_column_is_sorted_by_its_button(pages, page):
    page.go(pages["cohort"].as_uri())
    page.run("document.querySelectorAll('#scans th button')[2].focus()")
    column = (
        "[...document.querySelectorAll('#scans tbody tr')].map(row => row.cells[2].textContent)"
    )
    for key, order in (("Enter", 1), (" ", -1)):
        page.press(key)
        numbers = [int(text) for text in page.run(column) if text.isdigit()]
        assert len(numbers) == 9
        assert all(np.diff(numbers) * order >= 0)
    heading = "document.querySelectorAll('#scans th')[2].getAttribute('aria-sort')"
    assert page.run(heading) == "descending"
