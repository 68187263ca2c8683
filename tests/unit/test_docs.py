"""The pages that people read: every file has its line, no link is broken, and the table of methods is the registry's."""

import re
import string

import pytest
from conftest import PROGRAMS, ROOT

from rllr.methods import METHODS

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ARCHITECTURE = ROOT / "docs" / "architecture.md"
TRAINED_BY = {"sft": "SFT", "ppo": "PPO", "dpo": "DPO"}


def lines_of(page):
    """The lines of a page that are not in a fenced block."""
    inside, lines = False, []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("```"):
            inside = not inside
        elif not inside:
            lines.append(line)
    return lines


def anchors(page) -> set[str]:
    """The names by which a code host links to a page's headings."""
    titles = [line.lstrip("# ").lower() for line in lines_of(page) if re.match("#+ ", line)]
    kept = string.ascii_lowercase + string.digits + " -_"
    return {"".join(c for c in title if c in kept).replace(" ", "-") for title in titles}


def test_every_file_has_one_line_in_the_architecture():
    named = re.findall(r"^\| `([\w/]+\.(?:py|smk))` \|", ARCHITECTURE.read_text(), re.MULTILINE)
    programs = [str(path.relative_to(PROGRAMS)) for path in PROGRAMS.rglob("*.py")]
    rules = [path.name for path in (ROOT / "workflow" / "rules").glob("*.smk")]
    assert sorted(named) == sorted(programs + rules)


def test_every_kind_of_config_file_is_in_the_architecture():
    text = ARCHITECTURE.read_text()
    for path in (ROOT / "config").iterdir():
        assert f"| `{path.name}` |" in text or f"| `{path.name}/<" in text, path.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_broken(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(lines_of(page))):
        if target.startswith("https://"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_programs_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?:workflow|tests|config|docs|profiles|benchmarks)/[\w/-]+\.\w+", text):
        assert (ROOT / path).exists() or (page.parent / path).exists(), path


def test_the_table_of_methods_is_the_registry():
    expected = ["| method | starts from | trained by, on | recipe |", "|---|---|---|---|"]
    for name, method in METHODS.items():
        start = "base model" if method.start == "base" else f"`{method.start}`"
        if method.section and method.start != "base":
            start = f"merged {start}"
        trained = f"{TRAINED_BY[method.section]}, `{method.data}`" if method.section else "nothing more"
        expected.append(f"| `{name}` | {start} | {trained} | {method.recipe} |")
    assert "\n".join(expected) + "\n\n" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_results_with_other_settings_say_so():
    """Figures of an earlier day stand beside their date."""
    for page in (ROOT / "README.md", ROOT / "docs" / "results.md"):
        text = " ".join(page.read_text(encoding="utf-8").split())
        assert "2026-11-22, before the cue writer's rationales were shortened (2026-11-25)" in text
