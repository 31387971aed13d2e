"""What made a result can be told and compared."""

import hashlib

from bids_cmb import __version__
from bids_cmb.provenance import fingerprint, generated_by, machine, sha256, software


def test_a_files_digest_is_that_of_its_content(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert sha256(path) == hashlib.sha256(b"abc").hexdigest()


def test_equal_parts_have_equal_fingerprints_whatever_their_order():
    assert fingerprint(a=1, b=[2, None]) == fingerprint(b=[2, None], a=1)
    assert fingerprint(a=1) != fingerprint(a=2)
    assert fingerprint(a=1) != fingerprint(b=1)


def test_software_and_machine_are_named_without_user_or_host():
    assert software()["bids_cmb"] == __version__
    assert set(machine()) == {"System", "Cores", "Device"}


def test_an_image_is_named_in_the_dataset_that_it_makes_and_nothing_else_is(monkeypatch):
    for name in ("BIDS_CMB_IMAGE", "BIDS_CMB_CODE_URL", "APPTAINER_CONTAINER"):
        monkeypatch.delenv(name, raising=False)
    assert not generated_by()[0].keys() & {"Container", "CodeURL"}
    monkeypatch.setenv("BIDS_CMB_IMAGE", "example.org/bids_cmb:0.1.0")
    monkeypatch.setenv("BIDS_CMB_CODE_URL", "https://example.org/bids_cmb")
    monkeypatch.setenv("APPTAINER_CONTAINER", "/somewhere/of/a/user/bids_cmb.sif")
    [made] = generated_by()
    assert made["CodeURL"] == "https://example.org/bids_cmb"
    assert made["Container"] == {
        "Type": "apptainer", "Tag": "example.org/bids_cmb:0.1.0",
        "URI": "docker://example.org/bids_cmb:0.1.0",
    }  # fmt: skip
