"""Names, tables and sidecars are those of BIDS; its own schema is asked."""

import json
import re
from pathlib import Path

import pytest

from bids_cmb.bids import tables
from bids_cmb.bids.companions import find_mask
from bids_cmb.bids.description import write_derivative_dataset
from bids_cmb.bids.paths import Output
from bids_cmb.bids.scan import Scan
from bids_cmb.bids.tables import (
    read_columns,
    read_table,
    refresh_scans_table,
    write_table,
)
from bids_cmb.files import read_json, write_json
from bids_cmb.lesions.table import classify_burden


def scan(*entities, suffix="T2starw", desc="", more=()):
    entities = (("sub", "01"), *entities)
    name = "_".join(f"{key}-{value}" for key, value in entities)
    home = "/".join(f"{key}-{value}" for key, value in entities if key in ("sub", "ses"))
    relative = f"{home}/anat/{name}_{suffix}.nii.gz"
    paths = tuple(Path("/raw") / home / "anat" / other for other in more)
    return Scan(Path("/raw") / relative, relative, "anat", suffix, entities, desc, {}, paths)


def test_a_name_keeps_the_source_entities_and_adds_ours_in_order():
    output = Output(
        Path("/out"),
        scan(("ses", "2"), ("acq", "hires"), ("run", "01"), ("part", "mag"), ("chunk", "1")),
    )
    assert output.mask() == Path(
        "/out/sub-01/ses-2/anat/sub-01_ses-2_acq-hires_run-01_part-mag_space-orig_chunk-1"
        "_label-CMB_desc-T2starw_mask.nii.gz"
    )
    assert output.labels(".tsv").name.endswith("_seg-CMB_desc-T2starw_dseg.tsv")


def test_what_a_source_was_described_as_stays_in_the_name():
    one, other = (Output(Path("/out"), scan(desc=desc)) for desc in ("", "denoised"))
    assert one.mask().name == "sub-01_space-orig_label-CMB_desc-T2starw_mask.nii.gz"
    assert other.mask().name == "sub-01_space-orig_label-CMB_desc-denoisedT2starw_mask.nii.gz"
    assert one.preprocessed() != other.preprocessed()
    assert other.to_mni().name == (
        "sub-01_from-T2starw_to-MNI152NLin2009cAsym_mode-image_desc-denoised_xfm.txt"
    )
    assert one.to_mni().name == "sub-01_from-T2starw_to-MNI152NLin2009cAsym_mode-image_xfm.txt"


def test_all_combined_echoes_are_sources():
    output = Output(Path("/out"), scan(suffix="MEGRE", more=("sub-01_echo-2_MEGRE.nii.gz",)))
    assert output.sources() == [
        "bids:raw:sub-01/anat/sub-01_MEGRE.nii.gz",
        "bids:raw:sub-01/anat/sub-01_echo-2_MEGRE.nii.gz",
    ]


def test_a_table_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "new" / "table.tsv"
    write_table(path, ("a", "b"), [{"a": 1.5, "b": None}, {"a": "ü", "b": "x,y"}])
    assert path.read_bytes() == "a\tb\n1.5\tn/a\nü\tx,y\n".encode()
    assert read_table(path) == [{"a": "1.5", "b": None}, {"a": "ü", "b": "x,y"}]


@pytest.mark.parametrize(
    "cell", ['"', '"quoted"', 'a "b" c', "a\tb", "a,b", "x" * 200_000], ids=lambda cell: cell[:9]
)
def test_any_cell_comes_back(cell, tmp_path):
    write_table(tmp_path / "a.tsv", ("a", "b"), [{"a": cell, "b": 1}, {"a": None, "b": 2}])
    assert read_table(tmp_path / "a.tsv") == [{"a": cell, "b": "1"}, {"a": None, "b": "2"}]
    assert len((tmp_path / "a.tsv").read_text().splitlines()) == 3


def test_a_row_is_one_line(tmp_path):
    write_table(tmp_path / "a.tsv", ("a", "b"), [{"a": "x\r\ny", "b": 1}])
    assert (tmp_path / "a.tsv").read_text() == "a\tb\nx y\t1\n"


def test_a_table_of_another_may_be_of_any_system(tmp_path):
    """With a byte-order mark, other line ends, rows too short or too long."""
    (tmp_path / "a.tsv").write_bytes(b"\xef\xbb\xbfa\tb\r\n1\r\n\r\n2\tn/a\t3\r\n")
    assert read_table(tmp_path / "a.tsv") == [{"a": "1", "b": None}, {"a": "2", "b": None}]


def test_a_table_in_another_encoding_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "a.tsv").write_bytes("a\nZürich\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.tsv: a table must be text in UTF-8; .* 0xfc at"):
        read_table(tmp_path / "a.tsv")


def test_a_sidecar_that_cannot_be_read_is_none(tmp_path):
    path = tmp_path / "a.json"
    for text in ("{", "[1]", "\ud800".encode("utf-8", "surrogatepass")):
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        assert read_json(path) is None
    assert read_json(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "table",
    ["agreement", "boxes", "gate", "group", "lesion", "regions", "review", "reviewed", "scan"],
)
def test_every_column_is_described(table):
    for name, about in read_columns(table).items():
        assert name == name.lower()
        assert len(about["Description"]) > 10
        if name.endswith(("_mm", "_mm3", "_ms", "_t", "_ml")):
            assert "Units" in about


def test_nothing_speaks_of_a_column_by_an_earlier_name():
    """Neither descriptions of tables, nor who writes or shows or reads them, nor the docs."""
    earlier = re.compile(
        r"\b(n_uncounted|prob_(mean|max|sd)|edge_mm|next_region(_mm)?|mni_fit_mm|brain_cut(_percent)?"
        r"|in_plane_[12]_mm|slice_mm|through_mm|n_known|n_with|n_unjudged|n_scans_whole|n_same)\b"
        r"|[\"'.](un)?counted[\"']"
    )
    root = Path(__file__).parents[2]
    texts = [
        path
        for folder in (root / "bids_cmb", root / "docs")
        for path in sorted(folder.rglob("*"))
        if path.suffix in {".py", ".json", ".html", ".js", ".md"} and "niivue" not in path.parts
    ]
    assert len(texts) > 100
    found = {path.name: word[0] for path in texts if (word := earlier.search(path.read_text()))}
    assert found == {}
    for table, old in (("regions", "place group value"), ("boxes", "chance"), ("gate", "chance")):
        assert not read_columns(table).keys() & set(old.split())


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0"), (1, "1"), (2, "2 to 4"), (4, "2 to 4"), (5, "5 to 10"), (10, "5 to 10"),
     (11, "over 10")],
)  # fmt: skip
def test_burden_has_five_classes(count, said):
    """None of them looks like a date or a formula to a spreadsheet, as 2-4 does."""
    assert classify_burden(count) == said
    assert not re.search(r"\d[-/.]\d|^[=+@-]", said)
    assert said in read_columns("scan")["burden"]["Levels"]


def result(home, name, **counts):
    write_json(home / "anat" / f"{name}_label-CMB_desc-T2starw_mask.json", {"Microbleeds": counts})


def test_the_scan_table_is_that_of_the_sidecars(tmp_path):
    home = tmp_path / "sub-01" / "ses-1"
    result(home, "sub-01_ses-1_run-2", n_cmb=3)
    result(home, "sub-01_ses-1_run-1", n_cmb=0)
    refresh_scans_table(home)
    rows = read_table(home / "sub-01_ses-1_scans.tsv")
    assert [(row["filename"], row["n_cmb"], row["burden"]) for row in rows] == [
        ("anat/sub-01_ses-1_run-1_label-CMB_desc-T2starw_mask.nii.gz", "0", None),
        ("anat/sub-01_ses-1_run-2_label-CMB_desc-T2starw_mask.nii.gz", "3", None),
    ]


def test_a_scan_table_is_named_by_its_participant_wherever_the_output_lies(tmp_path):
    home = tmp_path / "sub-07" / "ses-x" / "out" / "sub-01"
    result(home, "sub-01", n_cmb=3)
    refresh_scans_table(home)
    assert [path.name for path in home.glob("*.tsv")] == ["sub-01_scans.tsv"]


def test_a_result_that_comes_while_the_scan_table_is_written_is_in_it(tmp_path, monkeypatch):
    home = tmp_path / "sub-01"
    result(home, "sub-01_run-1", n_cmb=1)
    write = tables.write_table

    def write_slowly(*arguments):
        write(*arguments)
        result(home, "sub-01_run-2", n_cmb=2)  # another process

    monkeypatch.setattr(tables, "write_table", write_slowly)
    refresh_scans_table(home)
    assert len(read_table(home / "sub-01_scans.tsv")) == 2


def test_links_to_the_raw_data_are_by_doi_or_by_the_way_there(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()

    def link(out):
        write_derivative_dataset(out, raw)
        return json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]["raw"]

    assert link(raw / "derivatives" / "bids_cmb") == "../../"
    assert link(tmp_path / "out") == "../raw/"
    (raw / "dataset_description.json").write_text('{"DatasetDOI": "10.1/x"}')
    assert link(tmp_path / "out") == "doi:10.1/x"


@pytest.fixture
def masks(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / "sub-01" / "anat" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        found = find_mask([tmp_path / "none", tmp_path], scan(("run", "1")), "brain")
        return found.name if found else None

    return make


def test_a_brain_mask_is_found_by_desc_or_label_in_the_scans_own_space(masks):
    assert masks("sub-01_desc-head_mask.nii.gz") is None
    assert masks("sub-01_space-MNI152NLin2009cAsym_desc-brain_mask.nii.gz") is None
    assert masks("sub-01_run-2_desc-brain_mask.nii.gz") is None
    assert masks("sub-01_label-brain_mask.nii.gz") == "sub-01_label-brain_mask.nii.gz"
    assert masks("sub-01_run-1_space-T2starw_desc-brain_mask.nii.gz") == (
        "sub-01_run-1_space-T2starw_desc-brain_mask.nii.gz"
    )
