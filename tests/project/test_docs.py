"""README and docs lead where they say, and say what the package says."""

import importlib.util
import re
from functools import cache
from pathlib import Path

import pytest

from bids_cmb.cli.main import main as one_command
from bids_cmb.cli.parser import COMMANDS, make_parser

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"\]\(([^)\s]+)\)")


def anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    for target in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), f"{page.name}: {target}"
        assert not anchor or anchor in anchors(there), f"{page.name}: {target}"


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop().resolve()
        if page in reached or page.suffix != ".md":
            continue
        reached.add(page)
        links = LINK.findall(page.read_text(encoding="utf-8"))
        waiting += [
            page.parent / path
            for path in (link.partition("#")[0] for link in links)
            if path and not path.startswith("http") and (page.parent / path).is_file()
        ]
    lost = [page for page in PAGES if page.resolve() not in reached and page.name != "index.md"]
    assert not lost


@cache
def generated():
    """The pages that docs/generate.py would write now, by their path in docs/."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return {path.relative_to(ROOT / "docs"): text for path, text in module.pages().items()}


def test_pages_made_of_the_package_are_current():
    """Else ``python docs/generate.py`` makes them anew."""
    old = [
        str(path)
        for path, text in generated().items()
        if not (ROOT / "docs" / path).is_file() or (ROOT / "docs" / path).read_text("utf-8") != text
    ]
    assert not old
    models = {path.name for path in (ROOT / "docs" / "models").iterdir()}
    assert models == {path.name for path in generated() if path.parent.name == "models"}


def test_every_page_is_in_the_navigation_of_the_site():
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages == set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text("utf-8")))


def test_every_test_that_a_page_names_exists():
    named = {
        (page.name, *each)
        for page in PAGES
        for each in re.findall(r"((?:\w+/)*test_\w+\.py)::(test_\w+)", page.read_text("utf-8"))
    }
    assert len(named) > 50
    lost = [
        (page, file, name)
        for page, file, name in named
        if not (ROOT / "tests" / file).is_file()
        or f"def {name}(" not in (ROOT / "tests" / file).read_text("utf-8")
    ]
    assert not lost


def commands():
    """Every command line of the app in the pages' shell blocks: page, first words, its flags."""
    for page in PAGES:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text("utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                found = re.search(r"(?:^bids-cmb|(?<!\S)\S*run\.py|-m bids_cmb) (.*)", line)
                if found:
                    words = found[1].split(" #")[0]
                    flags = re.findall(r"(?<![\w-])--[\w-]+", words)
                    yield str(page.relative_to(ROOT)), words.split(), flags


def helped(words, capsys):
    with pytest.raises(SystemExit):
        one_command([*words, "--help"])
    return capsys.readouterr().out


def test_every_command_of_the_pages_exists_with_its_flags(capsys):
    lines, known = list(commands()), {}
    assert len(lines) > 30
    for page, words, flags in lines:
        depth = (words[0] in COMMANDS) + (words[0] == "models")
        name = tuple(words[:depth])
        if name not in known:
            actions = make_parser()._option_string_actions
            known[name] = set(actions) if not name else helped(name, capsys)
        for flag in flags:
            assert flag in known[name], f"{page}: {' '.join(words)}"


def test_the_readme_is_one_screen_of_words():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) < 800
