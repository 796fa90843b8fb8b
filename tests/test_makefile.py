"""What the Makefile and the documents promise can be made."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]


def rules(text: str) -> set[str]:
    """Targets with a recipe or something to make first; a bare name in `.PHONY` succeeds and does nothing."""
    return set(re.findall(r"^([\w-]+):(?!=)(?: *\S|[^\n]*\n\t)", text, re.MULTILINE))


def phony(text: str) -> set[str]:
    return {name for line in re.findall(r"^\.PHONY:(.*)", text, re.MULTILINE) for name in line.split()}


def test_every_phony_name_has_a_rule() -> None:
    assert len(phony(MAKEFILE)) > 20
    assert phony(MAKEFILE) - rules(MAKEFILE) == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_tells_to_make_has_a_rule(path: Path) -> None:
    assert set(re.findall(r"`make ([a-z][a-z-]*)", path.read_text())) - rules(MAKEFILE) == set()


def test_a_name_without_a_rule_is_seen() -> None:
    text = ".PHONY: a b c d\na: b\nb:\n\t@true\nc:\nd := 1\n"
    assert phony(text) - rules(text) == {"c", "d"}
