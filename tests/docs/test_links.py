"""No link in the documents leads nowhere: neither to a file nor to a heading."""

import re

import pytest
from documents import FENCED, PAGES, ROOT, name_of

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors of all headings, as sites that host code make them."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCED.sub("", text), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).strip().lower()).replace(" ", "-")
        found.add(f"{slug}-{sum(each == slug for each in found)}" if slug in found else slug)
    return found


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page):
    text = page.read_text()
    for target in LINK.findall(FENCED.sub("", text)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists() and there.is_relative_to(ROOT), target
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there.read_text()), target


def test_a_dead_link_would_show():
    assert "your-own-data-and-model" in anchors((ROOT / "README.md").read_text())
    assert "no-such-heading" not in anchors("# No such `heading`, really\n```\n# no such heading\n```\n")
