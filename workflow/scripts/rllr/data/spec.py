"""The data config: one YAML file, checked against its schema, as frozen objects."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rllr.cli import UserError
from rllr.config import schema, validate
from rllr.tasks import ANSWER, METRICS, Task, read_label, respond

# The files' shares of the rows, in the order in which they draw: the name of a key under `rows`.
TRAIN_USES = ("validation", "sft", "label_pairs", "rationale_pairs", "unsupervised")


@dataclass(frozen=True, eq=False)
class TaskSpec:
    """A task and how its rows become prompts and rationales."""

    task: Task
    instruction: str
    claims: dict[str, str]  # label (score: anchor value) -> how a rationale words it
    sources: dict[str, dict[str, Any]]  # "train" and perhaps "test" -> source section
    pair: bool  # rows hold two texts
    decimals: int = 1  # digits of a written score

    def label_class(self, label: str) -> str:
        """The claim that stands for a label: the label itself, for a score the nearest anchor."""
        if self.task.kind != "score" or label in self.claims or not self.claims:
            return label
        return min(self.claims, key=lambda anchor: abs(float(anchor) - float(label)))


@dataclass(frozen=True)
class DataConfig:
    seed: int
    specs: dict[str, TaskSpec]
    packages: dict[str, dict]
    rows: dict[str, int | str | dict]
    avoid: dict[str, list[str]]
    annotator: tuple[str, dict]  # name, its settings
    label_pairs: dict[str, Any]
    rationale_pairs: dict[str, Any]
    tokenizers: dict[str, str]
    cutoff: int
    release: dict | None = None
    match: dict[str, str] = field(default_factory=dict)  # task -> pattern of its instructions, for a release
    tasks: dict[str, Task] = field(default_factory=dict)


def load_config(raw: dict, path: Path | str) -> DataConfig:
    """Check and resolve a data config, as read from the YAML file `path`.

    Raises:
        UserError: naming the file and the key.
    """
    if isinstance(raw, dict):
        _check_quoted(raw.get("tasks"), f"{path}: tasks")
    validate(raw, schema("data"), str(path))
    specs = {name: _task_spec(f"{path}: tasks.{name}", name, section) for name, section in raw["tasks"].items()}
    packages = raw.get("packages", {})
    for name, spec in specs.items():
        if "release" not in raw:
            for key in ("train", "instruction"):
                if key not in raw["tasks"][name]:
                    raise UserError(f"{path}: tasks.{name}.{key}: missing")
        for split, source in spec.sources.items():
            if "package" in source and source["package"] not in packages:
                raise UserError(
                    f"{path}: tasks.{name}.{split}.package: found {source['package']!r}, "
                    f"expected a key of packages ({', '.join(packages) or 'none'})"
                )
    if "release" not in raw and not raw.get("rows"):
        raise UserError(f"{path}: rows: missing, expected how many rows each file takes")
    for use, value in raw.get("rows", {}).items():
        if isinstance(value, dict) and (unknown := set(value) - set(specs)):
            raise UserError(f"{path}: rows.{use}.{min(unknown)}: no such task, expected {', '.join(specs)}")
    (annotator,) = raw.get("annotator", {"cue": {}}).items()
    if annotator[0] == "cue" and "release" not in raw:
        for name, spec in specs.items():
            _check_claims(f"{path}: tasks.{name}.claims", spec)
    pairs = raw.get("pairs", {})
    least = pairs.get("label_sensitive", {}).get("min_distance", 1)
    if any("label_pairs" in use and count for use, count in raw.get("rows", {}).items()):
        for spec in specs.values():
            _check_distance(f"{path}: pairs.label_sensitive.min_distance", least, spec)
    if pairs.get("rationale_sensitive", {}).get("by") == "judge" and not (annotator[1] or {}).get("judge_prompt"):
        raise UserError(f"{path}: pairs.rationale_sensitive.by: judge needs the annotator endpoint with a judge_prompt")
    return DataConfig(
        seed=raw["seed"],
        specs=specs,
        packages=packages,
        rows=raw.get("rows", {}),
        avoid=raw.get("avoid", {}),
        annotator=(annotator[0], annotator[1] or {}),
        label_pairs={"wrong": 1, "min_distance": 1, "confusion": None, **pairs.get("label_sensitive", {})},
        rationale_pairs={
            "by": "corruption",
            "corruptions": ["other_row", "contentless", "absent_words"],
            **pairs.get("rationale_sensitive", {}),
        },
        tokenizers=raw.get("tokenizers", {}),
        cutoff=raw.get("cutoff", 1536),
        release=raw.get("release"),
        match={name: section["match"] for name, section in raw["tasks"].items() if "match" in section},
        tasks={name: spec.task for name, spec in specs.items()},
    )


def _task_spec(where: str, name: str, section: dict) -> TaskSpec:
    kind = section["kind"]
    labels = tuple(str(label) for label in section.get("labels", ()))
    if (kind == "score") == bool(labels):
        raise UserError(f"{where}.labels: a task of kind {kind} {'has no' if kind == 'score' else 'needs'} labels")
    if kind == "score" and not ("low" in section and "high" in section and section["low"] < section["high"]):
        raise UserError(f"{where}: a task of kind score needs low and high, low below high")
    if kind == "stars" and not all(label.lstrip("-").isdigit() for label in labels):
        raise UserError(f"{where}.labels: found {', '.join(labels)}, expected whole numbers for kind stars")
    if len(set(labels)) != len(labels):
        raise UserError(f"{where}.labels: a label stands there twice")
    if "f1" in section and str(section["f1"]) not in labels:
        raise UserError(f"{where}.f1: found {section['f1']!r}, expected one of {', '.join(labels)}")
    metric = section.get("metric", "pearson" if kind == "score" else "accuracy")
    fitting = {"label": ("accuracy",), "score": ("pearson",)}.get(kind, METRICS)
    if metric not in fitting:
        raise UserError(f"{where}.metric: found {metric}, expected {fitting[0]} for a task of kind {kind}")
    for label in labels:
        task = Task(name=name, kind=kind, labels=labels)
        if read_label(respond(None, label), task) != label:
            raise UserError(f"{where}.labels: {label!r} cannot be told from another label in an answer")
    for key in ("answer", "match"):
        try:
            groups = re.compile(section.get(key, ANSWER)).groups
        except re.error as error:
            raise UserError(f"{where}.{key}: not a regular expression ({error})") from None
        if key == "answer" and not groups:
            raise UserError(f"{where}.answer: expected a group, which holds the label, found {section['answer']!r}")
    try:
        section.get("input", "").format(text="", text2="")
    except (LookupError, ValueError) as error:
        raise UserError(f"{where}.input: expected the fields {{text}} and {{text2}} ({error!r})") from None
    sources = {split: section[split] for split in ("train", "test") if split in section}
    for split, source in sources.items():
        values = source.get("values", [])
        meant = [
            *(values if isinstance(values, list) else values.values()),
            *(b["label"] for b in source.get("bins", [])),
        ]
        for label in meant:
            if kind == "score" or (label is not None and label not in labels):
                raise UserError(f"{where}.{split}: values or bins say {label!r}, expected one of {', '.join(labels)}")
    pairs = {"text2" in source for source in sources.values()}
    if len(pairs) == 2:
        raise UserError(f"{where}: train and test must both name text2, or neither")
    pair = True in pairs
    if sources and "input" in section and pair != ("{text2}" in section["input"]):
        told = (
            "text2 names a second column, which {text2} has to stand for" if pair else "{text2} needs a column, text2"
        )
        raise UserError(f"{where}.input: found {section['input']!r}; {told}")
    ends: dict[str, Any] = {end: section.get(end) for end in ("low", "high")}
    task = Task(
        name=name,
        kind=kind,
        labels=labels,
        **ends,
        metric=metric,
        f1=str(section["f1"]) if "f1" in section else None,
        answer=section.get("answer", ANSWER),
        input=section.get("input", "{text}\n{text2}" if pair else "{text}"),
    )
    return TaskSpec(
        task=task,
        instruction=section.get("instruction", ""),
        # A label's own word is its claim unless the config has a better one.
        claims={label: f"it is {label}" for label in labels}
        | {str(label): claim for label, claim in section.get("claims", {}).items()},
        sources=sources,
        pair=pair,
        decimals=section.get("decimals", 1),
    )


def _check_quoted(section: Any, where: str) -> None:
    """YAML reads an unquoted yes or no as true or false, which no label is: say so before the schema does."""
    if isinstance(section, bool):
        word, others = str(section).lower(), "yes and on" if section else "no and off"
        raise UserError(f"{where}: found {word}, as YAML reads {others}, too; quote the word")
    if isinstance(section, dict):
        for key, value in section.items():
            _check_quoted(key, where)
            if key != "quoting":  # the one that takes true or false
                _check_quoted(value, f"{where}.{key}")
    elif isinstance(section, list):
        for value in section:
            _check_quoted(value, where)


def _check_distance(where: str, least: float, spec: TaskSpec) -> None:
    """A label can be wrong only if another is far enough away."""
    task = spec.task
    if task.kind == "label":
        return
    ends = (task.low, task.high) if task.kind == "score" else (f(map(int, task.labels)) for f in (min, max))
    low, high = ends
    if high - low < least:
        raise UserError(f"{where}: found {least:g}, but the labels of task {task.name} go from {low:g} to {high:g}")


def _check_claims(where: str, spec: TaskSpec) -> None:
    """The cue annotator words a score by the claim of the nearest anchor."""
    if spec.task.kind == "score":
        try:
            anchors = [float(anchor) for anchor in spec.claims]
        except ValueError:
            anchors = []
        if len(anchors) < 2 or not all(spec.task.low <= anchor <= spec.task.high for anchor in anchors):
            raise UserError(f"{where}: expected two or more numbers from low to high, each with its claim")
