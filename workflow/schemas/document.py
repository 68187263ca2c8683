"""Print config/README.md: every key of every config file, out of the schemas and the defaults.

python workflow/schemas/document.py > config/README.md
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow" / "scripts"))

from rllr.config import load_yaml, schema  # noqa: E402
from rllr.methods import SECTIONS  # noqa: E402

INTRO = """# Configuration

This page is made from the schemas (`python workflow/schemas/document.py > config/README.md`); a test compares.
Unknown keys, wrong types and values out of range are refused before any work starts.

- `config.yaml`: what to run. Any key can be given on the command line: `snakemake --config seed=2 ...`.
- `stages.yaml`: the values of every stage unless a model's file says otherwise: what the published recipes share.
- `models/<model>.yaml`: a base model and its own hyperparameters. The section of a stage (`sft_wrat`, `rm_rllr`,
  `rllr_mix`, ...) overrides the section of its kind (`sft`, `reward`, `ppo`); `sft_wrat_all` takes that of
  `sft_wrat`, too.
- `data/<data>.yaml`: tasks, where their rows come from, and what is made of them.
- `templates/<template>.jinja`: chat templates. Rendered for training and prediction here, a template may write
  `{{ cut }}` between texts that are to be tokenised apart; transformers alone knows no such thing and renders nothing.
  Only templates write control tokens: `</s>` in a row's text is encoded as those four characters.

A run folder (`snakemake --directory runs/x`) may have a `config/` of its own: its `config.yaml` and `stages.yaml` are
laid over these, its other files take the place of those of the same name.

## What counts as a change

Every stage has a file of what it rests on, `results/<model>/<stage>/config.yaml`: its resolved values, what the
registry says of it, and digests of the code, the base model and the data files that decide its result. A stage runs
again when the text of that file changes or an earlier stage ran again; a half-finished run goes on only under the same
file. Time stamps of data, the place of the project and what `.snakemake` remembers decide nothing; nor does a base
model's `size`, and its licence and place count for its own folder alone, a task's `metric` and `f1` for predictions and
what is made of them. Code counts without comments, docstrings, types and messages, and without the modules that only
tell, keep or share out results (`NOT_DECIDING` in `workflow/scripts/rllr/provenance.py`). To keep results over a change
that you know to be harmless: `snakemake --touch <targets>`.
"""


def follow(node: dict, root: dict) -> dict:
    """`node` with its `$ref` followed; keys beside the reference win."""
    while "$ref" in node:
        target = root
        for part in node["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        node = {**target, **{k: v for k, v in node.items() if k != "$ref"}}
    return node


def kind(node: dict) -> str:
    """The values a leaf takes, in words."""
    if "enum" in node:
        return ", ".join(f"`{value}`" for value in node["enum"])
    if "const" in node:
        return f"`{node['const']}`"
    for several in ("anyOf", "oneOf"):
        if several in node:
            return " or ".join(filter(None, (kind(option) for option in node[several])))
    found = node.get("type", "")
    return " or ".join(found) if isinstance(found, list) else found


def table(node: dict, root: dict, defaults: dict | None = None, prefix: str = "") -> list[str]:
    """Rows `key | values | default | meaning` of an object's properties, nested objects with dotted keys."""
    rows = []
    for key, child in node.get("properties", {}).items():
        child = follow(child, root)
        name = f"{prefix}{key}"
        default = (defaults or {}).get(key)
        shown = "" if default is None or isinstance(default, dict) else f"`{default}`"
        rows.append(f"| `{name}` | {kind(child)} | {shown} | {child.get('description', '')} |")
        if "properties" in child and prefix.count(".") < 2:
            rows += table(child, root, default if isinstance(default, dict) else None, f"{name}.")
    return [row.replace("\n", " ") for row in rows]


def section(title: str, text: str, rows: list[str]) -> str:
    head = ["| key | values | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"## {title}", "", text, "", *head, *rows, ""])


def main() -> None:
    stages = load_yaml(ROOT / "config" / "stages.yaml")
    config, model, data = schema("config"), schema("model"), schema("data")
    parts = [
        INTRO,
        section("config.yaml", config["description"], table(config, config, load_yaml(ROOT / "config/config.yaml"))),
    ]
    sections = ["lora", "launch", *dict.fromkeys(SECTIONS.values())]
    stages_and_sections = {*sections, *SECTIONS}
    own = {"properties": {k: v for k, v in model["properties"].items() if k not in stages_and_sections}}
    parts.append(section("models/&lt;model&gt;.yaml", model["description"], table(own, model)))
    for name in sections:
        used = [stage for stage, kind_of in SECTIONS.items() if kind_of == name and stage != name]
        text = (
            f"Defaults from stages.yaml. Stages of this kind: {', '.join(used)}."
            if used
            else "Defaults from stages.yaml."
        )
        rows = table(model["$defs"][name], model, stages.get(name))
        parts.append(section(f"models/&lt;model&gt;.yaml: {name}", text, rows))
    parts.append(section("data/&lt;data&gt;.yaml", data["description"], table(data, data)))
    for name, node in data["$defs"].items():
        if "properties" in node:
            parts.append(section(f"data/&lt;data&gt;.yaml: {name}", node.get("description", ""), table(node, data)))
    print("\n".join(parts).rstrip())


if __name__ == "__main__":
    main()
