"""Entities are those of the BIDS schema, and a name says which a file has."""

from bids_cmb.bids.entities import (
    SCAN_ENTITIES,
    find_short_name,
    list_index_entities,
    parse_entities,
    parse_scan_entities,
    read_entities,
)


def test_entities_of_scans_are_in_the_order_of_the_schema():
    order = list(read_entities().values())
    assert list(SCAN_ENTITIES) == sorted(SCAN_ENTITIES, key=order.index)
    assert order.index("part") < order.index("space") < order.index("seg") < order.index("desc")


def test_an_entity_goes_by_its_long_name_its_short_one_or_that_of_pybids():
    assert find_short_name("acquisition") == find_short_name("acq") == "acq"
    assert find_short_name("inversion") == find_short_name("inv") == "inv"
    assert find_short_name("staining") == "stain"
    assert find_short_name("coil") == "coil"
    assert find_short_name("echotime") is None


def test_numbered_entities_are_runs_and_echoes_and_no_acquisitions():
    assert {"run", "echo", "chunk", "inv", "flip", "split"} == list_index_entities()


def test_a_name_is_parsed_with_and_without_suffix_and_extension():
    name = "sub-01_acq-hi-res_space-orig_T2starw.nii.gz"
    assert parse_entities(name) == {"sub": "01", "acq": "hi-res", "space": "orig"}
    assert parse_entities("sub-01_odd_dseg.nii.gz") == {"sub": "01", "odd": ""}
    assert parse_entities("T2starw.json") == {}
    assert parse_scan_entities("run-2_sub-01_chunk-3_desc-x") == {
        "sub": "01", "run": "2", "chunk": "3",
    }  # fmt: skip
