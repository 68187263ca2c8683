"""Self-contained HTML: one page without scripts or network, readable on a phone, in print and in the dark."""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

Cell = str | tuple[str, str]  # text, or (text, what qualifies it)

STYLE = """
:root { color-scheme: light dark; --ink: #1c2127; --soft: #59636e; --paper: #ffffff; --panel: #f4f6f8;
  --line: #d5dbe1; --link: #14599b; --won: #1d7a43; --lost: #b1401b }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --soft: #9fa9b4; --paper: #14181d; --panel: #1e242b;
  --line: #38414b; --link: #7fb8ee; --won: #6cc48f; --lost: #ee9273 } }
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth }
body { margin: 0 auto; max-width: 70rem; padding: 2rem 1.25rem 5rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
h1, h2, h3, h4 { line-height: 1.2; text-wrap: balance; margin: 2.2em 0 .6em }
h1 { font-size: 2rem; margin-top: 0 }
h2 { font-size: 1.5rem; padding-top: .7em; border-top: 1px solid var(--line) }
h3 { font-size: 1.2rem }
h4 { font-size: 1rem; margin-bottom: .4em }
p, li { max-width: 46rem; margin: .5em 0; overflow-wrap: anywhere }
a { color: var(--link) }
nav ul { margin: .5em 0; padding: 0; list-style: none; display: flex; flex-wrap: wrap; gap: .1em 1.2em }
.note, figcaption, caption { color: var(--soft); font-size: .875rem; text-align: left }
.scroll { overflow-x: auto; margin: .8em 0 }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums }
th, td { padding: .45em .9em .45em 0; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top }
th { font-weight: 600; border-bottom-color: var(--soft); vertical-align: bottom; hyphens: auto }
th:first-child, td:first-child { text-align: left; font-weight: 600; position: sticky; left: 0;
  background: var(--paper) }
td { white-space: nowrap }
td small { display: block; color: var(--soft); font-size: .8rem }
figure { margin: 1.2em 0 }
figure .scroll { background: #ffffff; border: 1px solid var(--line); border-radius: 6px; padding: .6rem }
figure img { display: block; width: 100%; height: auto }
.example { border-left: 3px solid var(--line); padding: .1em 0 .1em .9em; margin: 1em 0; break-inside: avoid }
.example p { margin: .25em 0 }
.answer { white-space: pre-wrap }
.tag { color: var(--soft); font-size: .8rem; margin-right: .5em }
.won { color: var(--won) } .lost { color: var(--lost) }
details { margin: .6em 0 }
summary { cursor: pointer; font-weight: 600 }
pre { background: var(--panel); padding: .8rem 1rem; overflow-x: auto; font-size: .8rem; border-radius: 6px }
@media print { :root { --ink: #000; --soft: #444; --paper: #fff; --panel: #fff; --line: #bbb; --link: #000;
    --won: #000; --lost: #000; color-scheme: light }
  html { font-size: 9.5pt } body { max-width: none; padding: 0 } nav { display: none }
  .scroll { overflow: visible } figure .scroll { border: 0; padding: 0 }
  td { white-space: normal } pre { white-space: pre-wrap }
  figure, tr { break-inside: avoid } h2, h3, h4 { break-after: avoid }
  details::details-content { content-visibility: visible; display: block; block-size: auto } }
"""


def text(value: object) -> str:
    """Text safe between tags and inside double-quoted attributes."""
    return escape(str(value), quote=True)


def table(head: Sequence[str], lines: Iterable[Sequence[Cell]], caption: str = "") -> str:
    """A table that scrolls inside its own box where the page is narrower."""

    def cell(value: Cell) -> str:
        first, rest = (value, "") if isinstance(value, str) else value
        return f"<td>{text(first)}{f'<small>{text(rest)}</small>' if rest else ''}</td>"

    titles = "".join(f"<th scope=col>{text(title)}</th>" for title in head)
    body = "".join(f"<tr>{''.join(map(cell, line))}</tr>" for line in lines)
    title = f"<caption>{text(caption)}</caption>" if caption else ""
    rows = f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
    return f"<div class=scroll tabindex=0><table>{title}{rows}</table></div>"


def figure(svg: Path, caption: str) -> str:
    """An svg file with its caption, at its natural width at most, and so large that its letters can be read.

    An image rather than inline markup: matplotlib's figures repeat each other's ids.
    """
    content = svg.read_bytes()
    width = content.split(b'width="', 1)[1].split(b"pt", 1)[0].decode()
    source = base64.b64encode(content).decode()
    return (
        f'<figure><div class=scroll tabindex=0><img src="data:image/svg+xml;base64,{source}" alt="{text(caption)}" '
        f'style="max-width:{float(width):.0f}pt;min-width:min({0.65 * float(width):.0f}pt,36rem)"></div>'
        f"<figcaption>{text(caption)}</figcaption></figure>"
    )


def page(title: str, body: str) -> str:
    """A whole document."""
    return (
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n"
        '<meta name=viewport content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}\n</body>\n</html>\n"
    )
