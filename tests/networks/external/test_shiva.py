"""Published networks are recognised by name and checksum, and nothing half-done is left."""

import hashlib
import json
import shutil
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest
from phantoms import phantom
from saved_models import module, residual, version_one

from bids_cmb.anatomy.brain_extraction import segment_brain
from bids_cmb.cli.commands import main
from bids_cmb.detection.ensemble import detect
from bids_cmb.networks.external import shiva
from bids_cmb.networks.external.shiva import (
    RELEASES,
    Release,
    compute_md5,
    install_models,
    parse_widths,
    verify_models,
)
from bids_cmb.networks.loading import ModelOptions, load_network
from bids_cmb.networks.model_cards import load_card
from bids_cmb.networks.weights import compute_digest

FIXTURES = Path(__file__).parents[2] / "fixtures"
FOLDS = sorted(FIXTURES.glob("*.h5"))


def quiet(_):
    pass


@pytest.fixture
def replica(tmp_path):
    """A folder with the three replicas and their descriptor, to be spoilt."""
    folder = tmp_path / "replica"
    folder.mkdir()
    for path in [*FOLDS, FIXTURES / "model_info.json"]:
        shutil.copyfile(path, folder / path.name)
    return folder


@pytest.fixture(scope="module")
def added(tmp_path_factory):
    models = tmp_path_factory.mktemp("models")
    install_models([FIXTURES], models, quiet)
    return models


def describe(folder, **changes):
    path = folder / "model_info.json"
    said = json.loads(path.read_text()) | changes
    path.write_text(json.dumps(said))


def refused(folder_or_sources, models, sentence):
    sources = folder_or_sources if isinstance(folder_or_sources, list) else [folder_or_sources]
    with pytest.raises(ValueError, match=sentence):
        install_models(sources, models, quiet)
    assert not models.exists() or list(models.iterdir()) == []


def test_widths_follow_from_the_tag():
    assert parse_widths("Unet3Dv2-10.7.2-1.8") == [10, 18, 32, 58, 104, 187, 337]


def test_the_releases_are_those_that_were_published():
    """Three folds each, their checksums all different."""
    folds = [digest for release in RELEASES for digest in release.folds.values()]
    assert len(set(folds)) == 6
    assert parse_widths(RELEASES[0].architecture)[-1] == 337


def test_both_rules_of_intensity_become_detectors(added):
    plain, literal = (
        load_card("shiva-v1-replica", added),
        load_card("shiva-v1-replica-readme", added),
    )
    assert [one["grid"]["intensity"] for one in plain["members"]] == ["shiva"] * 3
    assert [one["grid"]["intensity"] for one in literal["members"]] == ["shiva-readme"] * 3
    assert plain["threshold"] == 0.5
    assert "NC" in plain["licence"]
    assert plain["members"][0]["source"]["md5"] == compute_md5(FOLDS[0])


def test_what_was_added_is_as_its_card_says_until_it_is_altered(added, tmp_path, capsys):
    models = tmp_path / "models"
    shutil.copytree(added, models)
    assert main(["models", "verify", "--model-dir", str(models)]) == 0
    weights = next(models.glob("*fold-1.npz"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert "checksum of their model card" in verify_models(models)["shiva-v1-replica"]
    assert main(["models", "verify", "--model-dir", str(models)]) == 1
    assert main(["models", "list", "--model-dir", str(models)]) == 0
    assert "shiva-v1-replica-readme" in capsys.readouterr().out


def test_an_archive_and_single_files_do_as_well_as_a_folder(tmp_path, added):
    archive = tmp_path / "shiva.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for path in [*FOLDS, FIXTURES / "model_info.json"]:
            packed.write(path, f"deep/er/{path.name}")
    for at, sources in enumerate([[archive], [*FOLDS, FIXTURES / "model_info.json"]]):
        models = tmp_path / str(at)
        assert install_models(sources, models, quiet)[0] == "shiva-v1-replica"
        assert load_card("shiva-v1-replica", models) == load_card("shiva-v1-replica", added)


def test_adding_again_replaces(tmp_path):
    for _ in range(2):
        install_models([FIXTURES], tmp_path, quiet)
    assert len(list(tmp_path.iterdir())) == 5


def test_the_door_says_what_to_type_or_what_is_wrong(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("BIDS_CMB_MODEL_DIR", raising=False)
    assert main(["models", "add", str(FIXTURES)]) == 64
    assert main(["models", "add", str(FIXTURES), "--model-dir", str(tmp_path / "m")]) == 0
    assert "--detector shiva-v1-replica" in capsys.readouterr().out
    assert main(["models", "add", str(tmp_path / "none"), "--model-dir", str(tmp_path)]) == 1
    assert "a model to add must be there" in capsys.readouterr().err


def test_published_names_with_other_bytes_are_refused(tmp_path):
    for name in RELEASES[0].folds:
        shutil.copyfile(FOLDS[0], tmp_path / name)
    refused(tmp_path, tmp_path / "m", "of shiva-v1 must have MD5 cc5e.*It was altered")


def test_published_networks_are_known_by_checksum_under_any_name(tmp_path, monkeypatch):
    """As if the replicas were the published ones."""
    folds = {f"n{at}-{path.name}": compute_md5(path) for at, path in enumerate(FOLDS)}
    release = Release("shiva-v1", "Unet3Dv2-2.7.2-1.3", folds)
    monkeypatch.setattr(shiva, "RELEASES", (release,))
    assert install_models(FOLDS, tmp_path / "m", quiet) == ["shiva-v1", "shiva-v1-readme"]
    refused(FOLDS[:2], tmp_path / "n", "shiva-v1 has 3 networks, to be added together; n2-.* is m")


def test_an_altered_byte_is_caught(replica, tmp_path):
    path = replica / FOLDS[2].name
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(content)
    refused(replica, tmp_path / "m", "must have MD5 .* found .* It was altered")


def test_a_missing_fold_is_caught(replica, tmp_path):
    (replica / FOLDS[1].name).unlink()
    refused(replica, tmp_path / "m", "fold_1_model.h5 is missing")


def test_unknown_networks_need_a_descriptor(tmp_path):
    refused([FOLDS[0]], tmp_path / "m", "or have its model_info.json beside it; found MD5")
    (tmp_path / "empty").mkdir()
    refused([tmp_path / "empty"], tmp_path / "m", "must hold .h5 files or SavedModel folders")
    (tmp_path / "a.keras").write_text("")
    refused([tmp_path / "a.keras"], tmp_path / "m", "a model must be a zip, a folder, an .h5 file")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"script": {"name": "build.py", "md5": "0"}}, "must not name a script, since code of a"),
        ({"architecture": "ResUnet3D-8.9.2-1.5"}, "only kind that can be rebuilt; found 'ResUnet"),
        ({"architecture": "Unet3Dv2-3.7.2-1.3"}, r"must be down0_first with kernel \(3, 3, 3, 1, "),
        ({"version": "v1"}, "networks of shiva-v1 must be the published ones"),
        ({"files": []}, "must name at least one file"),
        ({"files": "all"}, "a descriptor must be JSON with version and files"),
    ],
)
def test_descriptors_that_cannot_be_followed_are_refused(replica, tmp_path, changes, sentence):
    describe(replica, **changes)
    refused(replica, tmp_path / "m", sentence)


@pytest.mark.parametrize("name", ["../out.h5", "/tmp/out.h5", "a/../../out.h5", "C:\\out.h5"])
def test_paths_that_climb_out_of_an_archive_are_refused(tmp_path, name):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(name, b"x")
    refused([archive], tmp_path / "m", "paths in an archive must stay inside")


def test_links_in_an_archive_are_refused(tmp_path):
    archive = tmp_path / "a.zip"
    link = zipfile.ZipInfo("link.h5")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr(link, "/etc/passwd")
    refused([archive], tmp_path / "m", "must hold files, no links; found 'link.h5'")


def test_an_archive_that_unpacks_to_too_much_is_refused_before_it_is_unpacked(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(shiva, "MAX_UNPACKED_BYTES", 10**6)
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("a.h5", bytes(10**7))
    assert archive.stat().st_size < 10**5
    refused([archive], tmp_path / "m", "must unpack to at most")


def test_what_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK nothing")
    refused([tmp_path / "a.zip"], tmp_path / "m", "an archive must be a zip that can be read")


# SavedModels: replicas of the second release


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    """A SavedModel with eight filters and residual blocks, of SHIVA's size, and its descriptor."""
    folder = tmp_path_factory.mktemp("second")
    residual((160, 214, 176)).export(folder / "fold_0.tf_inference", verbose=False)
    said = {
        "version": "v2-replica", "model_format": "tf_inference", "architecture": "ResUnet3D",
        "files": [
            {"name": "fold_0.tf_inference", "md5": compute_md5(folder / "fold_0.tf_inference")}
        ],
    }  # fmt: skip
    (folder / "model_info.json").write_text(json.dumps(said))
    return folder


def test_the_md5_of_a_folder_is_over_the_bytes_of_its_files_by_path(tmp_path):
    for name, content in (("b/x", b"2"), ("a", b"1"), ("c", b"3")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    assert compute_md5(tmp_path) == hashlib.md5(b"123", usedforsecurity=False).hexdigest()


def test_a_savedmodel_is_added_and_loaded_from_its_new_place(second, tmp_path):
    names = install_models([second], tmp_path / "m", quiet)
    said = load_card(names[0], tmp_path / "m")
    (member,) = said["members"]
    assert member["builder"] == "savedmodel"
    load_network(member, tmp_path / "m" / member["weights"])
    assert verify_models(tmp_path / "m") == {"shiva-v2-replica": "", "shiva-v2-replica-readme": ""}


def test_a_savedmodel_of_another_shape_or_with_a_link_is_refused(second, tmp_path):
    other = tmp_path / "other"
    module(lambda tf, image: tf.sigmoid(image), other / "fold_0.tf_inference")
    describe_like = json.loads((second / "model_info.json").read_text())
    describe_like["files"][0]["md5"] = compute_md5(other / "fold_0.tf_inference")
    (other / "model_info.json").write_text(json.dumps(describe_like))
    refused(other, tmp_path / "m", r"must have shape \(None, 160, 214, 176, 1\)")
    linked = tmp_path / "linked"
    shutil.copytree(second, linked)
    (linked / "fold_0.tf_inference" / "extra").symlink_to("/etc/passwd")
    describe_like["files"][0]["md5"] = compute_md5(linked / "fold_0.tf_inference")
    (linked / "model_info.json").write_text(json.dumps(describe_like))
    refused(linked, tmp_path / "m", "must hold files, no links; extra")


def describe_new(folder, name, *, version="v1-graph"):
    said = {
        "version": version, "architecture": "ResUnet3D",
        "files": [{"name": name, "md5": compute_md5(folder / name)}],
    }  # fmt: skip
    (folder / "model_info.json").write_text(json.dumps(said))


def test_a_version_1_graph_with_a_descriptor_of_its_own_is_not_added_and_writes_nothing(tmp_path):
    """Its author chooses the checksum; at loading it would write two files."""
    source = tmp_path / "source"
    source.mkdir()
    version_one(source / "fold_0.tf_inference", tmp_path / "written", where="main_op")
    describe_new(source, "fold_0.tf_inference")
    refused(source, tmp_path / "m", "a SavedModel must be of TensorFlow 2")
    assert not list(tmp_path.glob("written*"))


def test_a_card_of_a_version_1_graph_writes_nothing_when_a_scan_is_read(tmp_path):
    """Whoever writes the card by hand gets a sentence for it too."""
    version_one(tmp_path / "fold-0", tmp_path / "written", where="main_op")
    member = {
        "name": "fold-0", "builder": "savedmodel", "arguments": {}, "grid": {"shape": [24, 20, 16]},
        "weights": "fold-0", "sha256": compute_digest(tmp_path / "fold-0"),
    }  # fmt: skip
    with pytest.raises(ValueError, match="a SavedModel must be of TensorFlow 2"):
        load_network(member, tmp_path / "fold-0")
    assert not list(tmp_path.glob("written*"))


def test_a_descriptor_of_nested_brackets_is_refused(tmp_path):
    source = tmp_path / "source"
    module(lambda tf, image: tf.sigmoid(image), source / "fold_0.tf_inference")
    (source / "model_info.json").write_text('{"files": ' + "[" * 100_000)
    refused(source, tmp_path / "m", "a descriptor must be JSON .*found more than 64 levels")


@pytest.mark.slow
def test_replicas_of_both_releases_read_a_scan_and_are_averaged_on_its_grid(
    added, second, tmp_path
):
    """Probabilities on the scan's grid; 0 outside the brain; the spread is that of the two."""
    models = tmp_path / "models"
    shutil.copytree(added, models)
    install_models([second], models, quiet)
    image, _, _ = phantom(np.random.default_rng(2), bleeds=3, spacing=(1.0, 1.0, 3.0))
    brain = segment_brain(image)
    each = [
        detect(name, image, brain, ModelOptions(models)).mean.data
        for name in ("shiva-v1-replica", "shiva-v2-replica")
    ]
    both = detect(["shiva-v1-replica", "shiva-v2-replica"], image, brain, ModelOptions(models))
    np.testing.assert_allclose(both.mean.data, np.mean(each, axis=0), atol=2e-4)  # both cut at 0.5
    np.testing.assert_allclose(both.spread.data, np.std(each, axis=0), atol=2e-4)
    inside = brain.data > 0
    assert not both.mean.data[~inside].any()
    assert both.mean.data[inside].min() > 0
