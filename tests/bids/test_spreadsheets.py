"""Tables that people keep come as plain cells, whatever they were kept in."""

import zipfile

import pytest
from openpyxl import Workbook

from bids_cmb.bids import spreadsheets
from bids_cmb.bids.spreadsheets import read_named_rows, read_sheet, split_tab_separated


@pytest.mark.parametrize("comma", [",", ";", "\t"])
def test_text_comes_as_numbers_and_words(comma, tmp_path):
    path = tmp_path / "a.csv"
    lines = [["name", "x"], ["007", " 1.5 "], ["b", "n/a"], ["", ""], ["1e2", "-3"]]
    path.write_text("\ufeff" + "\n".join(comma.join(line) for line in lines))
    assert read_sheet(path) == [["name", "x"], ["007", 1.5], ["b", None], [100.0, -3.0]]


def test_a_workbook_reads_like_its_text(tmp_path):
    book = Workbook()
    book.create_sheet("empty")
    for row in (["file", "x"], ["a.nii.gz", 3], [None, None], ["b", 2.5]):
        book.active.append(row)
    book.save(tmp_path / "a.xlsx")
    (tmp_path / "a.csv").write_text("file,x\na.nii.gz,3\n,\nb,2.5\n")
    assert read_sheet(tmp_path / "a.xlsx") == read_sheet(tmp_path / "a.csv")
    assert read_named_rows(tmp_path / "a.xlsx", ("file", "x"))[1] == {"file": "b", "x": 2.5}


def test_formulas_are_not_reckoned(tmp_path):
    book = Workbook()
    book.active.append([1, "=1+1", 3])
    book.save(tmp_path / "a.xlsx")  # nobody has opened it in Excel: no value is stored
    assert read_sheet(tmp_path / "a.xlsx") == [[1.0, None, 3.0]]


@pytest.mark.parametrize(
    ("name", "said"), [("a.xls", "Save it as .xlsx or .csv"), ("a.pdf", r"found \.pdf\.$")]
)
def test_other_files_are_refused(name, said, tmp_path):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=said):
        read_sheet(tmp_path / name)


def test_a_workbook_that_is_only_an_archive_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.xlsx", "w") as packed:
        packed.writestr("x", "y")
    with pytest.raises(ValueError, match="an Excel workbook is expected; it cannot be read"):
        read_sheet(tmp_path / "a.xlsx")


@pytest.mark.parametrize("name", ["a.xlsx", "a.csv"])
def test_what_unpacks_to_too_much_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(spreadsheets, "MAX_SIZE_MB", 0.01)
    if name.endswith("csv"):
        (tmp_path / name).write_text("1,2\n" * 5000)
    else:
        with zipfile.ZipFile(tmp_path / name, "w", zipfile.ZIP_DEFLATED) as packed:
            packed.writestr("x", "0" * 20000)
    with pytest.raises(ValueError, match=r"a table of at most 0\.01 MB is expected; found 0 MB"):
        read_sheet(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        ('"open\tb', ['"open', "b"]),
        ('3" coil\t5" coil', ['3" coil', '5" coil']),
        ('"a ""b"", c"\td', ['a "b", c', "d"]),  # as spreadsheets write it
        ('"a\tb"\tc', ["a\tb", "c"]),  # as BIDS has cells with tabs written
        ('"5\t6"', ['"5', '6"']),  # two cells, or the table would lack one
        ("\t", ["", ""]),
    ],
)
def test_a_quotation_mark_never_reaches_beyond_its_line(line, cells):
    assert split_tab_separated(f"one\ttwo\r\n{line}\r\n\nlast\trow\n") == [
        ["one", "two"], cells, ["last", "row"],
    ]  # fmt: skip


def test_a_quotation_mark_that_is_not_closed_is_refused_in_a_sentence(tmp_path):
    (tmp_path / "a.csv").write_text('file,x\n"a,' + "0" * 200_000)
    with pytest.raises(ValueError, match=r"a\.csv: a table is expected; it cannot be read \(field"):
        read_sheet(tmp_path / "a.csv")
