"""Fill tables of pages from committed results: between `<!-- docs/results/<name> -->` and `<!-- end -->` in the page.

    python docs/tables.py docs/results.md

`make keep-results` does that after it has copied the results of a study. A test compares.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(<!-- (docs/results/\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
LEFT_OUT = "vs rlhf"  # a column that few readers need, and wide


def table(summary: Path) -> str:
    """The first table of a summary.md, without the column LEFT_OUT."""
    lines = summary.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith("| method"))
    last = next((number for number in range(first, len(lines)) if not lines[number].startswith("|")), len(lines))
    rows = [line.strip("|").split("|") for line in lines[first:last]]
    kept = [number for number, cell in enumerate(rows[0]) if cell.strip() != LEFT_OUT]
    return "".join("|" + "|".join(row[number] for number in kept) + "|\n" for row in rows)


def filled(text: str) -> str:
    """A page with the tables as the results are today."""
    return BLOCK.sub(lambda found: f"{found[1]}\n{table(ROOT / found[2] / 'summary.md')}\n{found[4]}", text)


def main() -> None:
    for path in map(Path, sys.argv[1:]):
        path.write_text(filled(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
