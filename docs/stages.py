"""Draw the graph of stages out of Snakemake's own, into docs/stages-light.svg and docs/stages-dark.svg.

    snakemake --rulegraph dot results/report.html results/smollm2/dpo/metrics.json | python docs/stages.py

`make figures` gives it all targets.

A stage stands right of all that it reads from; what another arrow implies is left out, and so are the files of
configuration, which every stage reads, and figures, of which every result has one.
"""

import re
import sys
from itertools import pairwise
from pathlib import Path

WIDTH, HEIGHT, GAP_X, GAP_Y = 66, 38, 14, 10  # of a box, and between boxes: letters to read at a page's width
COLOURS = {"light": ("#ffffff", "#1f2328", "#0969da", "#8c959f"), "dark": ("#0d1117", "#e6edf3", "#4493f8", "#6e7681")}
HIDDEN = {"resolved", "figure"}


def read(dot: str) -> dict[str, set[str]]:
    """Rule -> the rules that it reads from."""
    names = dict(re.findall(r'(\d+)\[label = "(\w+)"', dot))
    graph: dict[str, set[str]] = {name: set() for name in names.values() if name not in HIDDEN}
    for start, end in re.findall(r"(\d+) -> (\d+)", dot):
        if {names[start], names[end]}.isdisjoint(HIDDEN):
            graph[names[end]].add(names[start])
    return graph


def before(graph: dict[str, set[str]], node: str) -> set[str]:
    """All that a node rests on."""
    return graph[node].union(*(before(graph, start) for start in graph[node]))


def reduced(graph: dict[str, set[str]]) -> dict[str, set[str]]:
    """Without the edges that longer ways imply."""
    return {
        node: {s for s in starts if not any(s in before(graph, other) for other in starts)}
        for node, starts in graph.items()
    }


def arrange(graph: dict[str, set[str]]) -> tuple[dict[str, tuple[float, float]], list[list[str]]]:
    """Centres of boxes, and of places where an edge over several columns passes one; each edge as a way over these."""
    depth: dict[str, int] = {}

    def deep(node: str) -> int:
        depth[node] = 1 + max((deep(start) for start in graph[node]), default=-1)
        return depth[node]

    columns: list[list[str]] = [[] for _ in range(1 + max(map(deep, sorted(graph))))]
    for node in sorted(graph):
        columns[depth[node]].append(node)
    ways, beside = [], {node: [] for node in graph}
    for node in sorted(graph):
        for start in sorted(graph[node]):
            places = {f"{start} {i} {node}": i for i in range(depth[start] + 1, depth[node])}
            for place, i in places.items():
                columns[i].append(place)
            ways.append([start, *places, node])
    for a, b in [pair for way in ways for pair in pairwise(way)]:
        beside.setdefault(a, []).append(b)
        beside.setdefault(b, []).append(a)

    # Everything near the middle of what it touches, column by column, to and fro.
    y = {name: float(i) for column in columns for i, name in enumerate(column)}
    for sweep in range(12):
        for column in columns if sweep % 2 == 0 else reversed(columns):
            middle = {name: sum(y[other] for other in beside[name]) / max(1, len(beside[name])) for name in column}
            column.sort(key=lambda name, middle=middle: (middle[name], name))
            top = sum(middle.values()) / len(column) - (len(column) - 1) / 2
            y |= {name: top + i for i, name in enumerate(column)}
    low = min(y.values())
    centres = {
        name: (1 + WIDTH / 2 + i * (WIDTH + GAP_X), 1 + HEIGHT / 2 + (y[name] - low) * (HEIGHT + GAP_Y))
        for i, column in enumerate(columns)
        for name in column
    }
    return centres, ways


def words(name: str, x: float) -> str:
    """A name of two words in two lines around the middle of its box."""
    first, *second = name.split("_", 1)
    if not second:
        return name
    return f'<tspan x="{x:g}" dy="-0.5em">{first}</tspan><tspan x="{x:g}" dy="1.1em">{second[0]}</tspan>'


def svg(graph: dict[str, set[str]], colours: tuple[str, str, str, str]) -> str:
    """The picture; `colours`: of the ground, text, boxes and arrows."""
    ground, ink, box, arrow = colours
    centres, ways = arrange(graph)
    width, height = (max(c[i] for c in centres.values()) + (WIDTH, HEIGHT)[i] / 2 + 1 for i in (0, 1))
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img"'
        ' font-family="sans-serif" font-size="14">',
        "<title>The stages, each an arrow away from what it reads</title>",
        f'<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{arrow}"/></marker>',
    ]
    for way in ways:
        (x, y), *rest = [centres[name] for name in way]
        path = f"M{x + WIDTH / 2:g} {y:g}"
        for i, (right, level) in enumerate(rest, 1):
            left = right - WIDTH / 2
            path += f"C{left - GAP_X / 2:g} {y:g} {left - GAP_X / 2:g} {level:g} {left:g} {level:g}"
            path += f"H{right + WIDTH / 2:g}" if i < len(rest) else ""
            y = level
        lines.append(f'<path d="{path}" fill="none" stroke="{arrow}" stroke-width="1.5" marker-end="url(#tip)"/>')
    for name in sorted(graph):
        x, y = centres[name]
        lines.append(
            f'<rect x="{x - WIDTH / 2:g}" y="{y - HEIGHT / 2:g}" width="{WIDTH}" height="{HEIGHT}" rx="6"'
            f' fill="{ground}" stroke="{box}" stroke-width="1.5"/>'
            f'<text x="{x:g}" y="{y + 4:g}" text-anchor="middle" fill="{ink}">{words(name, x)}</text>'
        )
    return "\n".join([*lines, "</svg>"]) + "\n"


def main() -> None:
    graph = reduced(read(sys.stdin.read()))
    for name, colours in COLOURS.items():
        Path(__file__).with_name(f"stages-{name}.svg").write_text(svg(graph, colours), encoding="utf-8")


if __name__ == "__main__":
    main()
