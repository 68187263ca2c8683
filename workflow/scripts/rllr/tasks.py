"""What a task is, how an answer is written, and how the label is read back from it."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

from rllr.cli import UserError
from rllr.files import read_json

KINDS = ("label", "stars", "score")
METRICS = ("accuracy", "pearson")
ANSWER = r"(?im)^[\s>*#\-]*label[\s*]*:(.*)$"  # the answer line of `respond`, tolerantly


@dataclass(frozen=True)
class Task:
    """One NLU task, as `results/data/<data>/tasks.json` holds it."""

    name: str
    kind: str  # label: one of `labels`; stars: ordered integer labels; score: a number in [low, high]
    labels: tuple[str, ...] = ()  # label words as written in responses; empty for `score`
    low: float = None  # type: ignore[assignment]  # every task of kind `score` has both, no other
    high: float = None  # type: ignore[assignment]
    metric: str = "accuracy"  # headline metric: accuracy, or pearson for `score`
    f1: str | None = None  # the label whose binary F1 is reported beside accuracy (MRPC, QQP)
    answer: str = ANSWER  # regular expression whose last match's group 1 holds the label
    input: str = "{text}"  # how a row's text enters the prompt, and a second text as {text2}


def load_tasks(path: Path | str) -> dict[str, Task]:
    """Read `tasks.json`: `{name: {kind, labels, ...}}`."""
    tasks = {}
    for name, fields in read_json(path).items():
        try:
            task = Task(name=name, **{**fields, "labels": tuple(fields.get("labels", ()))})
        except TypeError as error:
            raise UserError(f"{path}: task {name}: {error}") from None
        if task.kind not in KINDS or task.metric not in METRICS:
            raise UserError(f"{path}: task {name}: kind must be one of {KINDS} and metric one of {METRICS}")
        tasks[name] = task
    return tasks


def dump_tasks(tasks: dict[str, Task]) -> dict:
    return {name: {k: v for k, v in asdict(task).items() if k != "name"} for name, task in tasks.items()}


def respond(rationale: str | None, label: str) -> str:
    """The response as trained on: rationale, newline, `Label: <label>`; the label line alone without rationale."""
    return f"{rationale}\nLabel: {label}" if rationale else f"Label: {label}"


COUNTED = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBER_WORDS = {word: float(value) for value, word in enumerate(COUNTED)}
# Beside a number these make another number of it, which we do not try to read.
OTHER_NUMBERS = re.compile(
    r"(?<!\w)(half|third|quarter|point|minus|eleven|twelve|\w+teen|(twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|"
    r"thousand|million)(?!\w)"
)
NEGATIONS = re.compile(
    r"(?<!\w)(not|no|neither|nor|never|non|un|cannot|hardly|barely|without|false|wrong|incorrect|\w+n't|"
    r"(is|are|was|were|do|does|did|ca|wo|could|would|should)nt)(?!\w)"
)


def _normalise(text: str) -> str:
    """Lower case; quotes, markup and outer punctuation removed; inner runs of space, '_' and hyphens to one space."""
    text = text.lower().translate({0x2018: "'", 0x2019: "'", 0x2212: "-"})
    text = re.sub(r"[\s_]+|(?<=\w)[\-\u2010-\u2014]+(?=\w)", " ", text)
    text = re.sub(r"(?<![\w.])\.(?=\d)", "0.", text)  # ".5" is a number
    return text.strip(" \t.,;:!?*`'\"()[]{}<>\u201c\u201d\u2026")


def written(score: float) -> str:
    """A score as labels have it: six digits after the point at most, without those that say nothing."""
    return f"{round(score, 6) + 0.0:.6f}".rstrip("0").rstrip(".")  # -0 is 0


def read_label(answer: str, task: Task) -> str | None:
    """The label in the last answer line of `answer`, as the task writes it; None if none can be read.

    Strict where it matters: the answer line must hold exactly one of the task's labels. A label word inside a longer
    label does not count ("not equivalent" is not "equivalent"), nor do two different labels in one line, nor a label
    beside a negation that is not part of it. A score outside [low, high] is not a label.
    """
    lines = [match.group(1) or "" for match in re.finditer(task.answer, answer)]
    if not lines:
        return None
    said = _normalise(lines[-1])
    if task.kind == "score":
        value = _number(said, task.high)
        return None if value is None or not task.low <= value <= task.high else written(value)
    known = {_normalise(label): label for label in task.labels}
    if said in known:
        return known[said]
    if task.kind == "stars":
        value = _number(said, max(map(float, task.labels)))
        return known.get(f"{value:g}") if value is not None else None
    # Longest first, and each found label is blanked out, so that "equivalent" is not found in "not equivalent".
    found = []
    for label in sorted(known, key=len, reverse=True):
        inside = r"[.,\-]?" if label.isdigit() else ""  # "1" is not in "1.5" or "-1"
        pattern = rf"(?<!\w){'(?<![.,-])' if inside else ''}{re.escape(label)}(?!{inside}\w)"
        if re.search(pattern, said):
            found.append(label)
            said = re.sub(pattern, " ", said)
    return known[found[0]] if len(found) == 1 and not NEGATIONS.search(said) else None


def _number(text: str, top: float) -> float | None:
    """The one number in `text`: digits, or a word up to ten that stands alone or before its unit ("suggests one" is no
    number); as `x out of y` or `x/y` where y is `top`, too.
    """
    if NEGATIONS.search(text) or OTHER_NUMBERS.search(text):
        return None
    of_top = rf"\s*(/|out of)\s*({top:g}(\.0+)?|{COUNTED[int(top)] if top in range(11) else '(?!)'})(?![.,]?\w)"
    text = re.sub(rf"(?<=\w){of_top}", "", text)
    numbers = re.findall(r"(?<![\w.,])-?\d+(?:\.\d+|,\d{1,2})?(?![.,]?\w)", text)
    digits = re.findall(r"\d+", text)
    words = [w for w in re.findall(r"[a-z]+", text) if w in NUMBER_WORDS]
    if len(numbers) + len(words) != 1 or len(digits) != len(re.findall(r"\d+", "".join(numbers))):
        return None
    if numbers:
        return float(numbers[0].replace(",", "."))
    alone = re.search(rf"^{words[0]}$|(?<!\w){words[0]} (stars?|points?)(?!\w)", text.strip())
    return NUMBER_WORDS[words[0]] if alone else None


def agrees(said: str | None, gold: str, task: Task) -> bool:
    """Whether a label read from an answer counts as right; a score does within a tenth of its range."""
    if said is None:
        return False
    if task.kind == "score":
        return abs(float(said) - float(gold)) <= 0.1 * (task.high - task.low) + 1e-9  # decimals are no binary numbers
    return said == gold
