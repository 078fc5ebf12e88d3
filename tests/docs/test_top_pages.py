"""README.md and its neighbours: short, with links that lead somewhere and a picture that is not too heavy."""

import re

import pytest
import yaml

from flowpolicy import __version__
from flowpolicy.cli.main import VERBS
from tests.docs.pages import ROOT

PAGES = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
README = (ROOT / "README.md").read_text()


def test_the_readme_has_at_most_8_kb_and_its_picture_1_mb() -> None:
    assert len(README.encode()) <= 8000
    (picture,) = re.findall(r"!\[.+\]\((.+)\)", README)
    assert (ROOT / picture).read_bytes()[:6] == b"GIF89a" and (ROOT / picture).stat().st_size <= 1_000_000


def test_the_readme_has_one_table_of_results_and_a_line_for_every_verb() -> None:
    assert README.count("<!-- table ") == 1
    listed = re.findall(r"^\| (`.*?) \|", README, re.MULTILINE)
    assert [verb for cell in listed for verb in re.findall(r"`(\w+)`", cell)] == list(VERBS)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_to_a_file(page: str) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", re.sub(r"`[^`]*`", "", (ROOT / page).read_text()))
    assert not [link for link in links if not link.startswith("https://") and not (ROOT / link).exists()]


def test_the_citation_and_the_changelog_are_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["version"] == __version__ and f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text()
