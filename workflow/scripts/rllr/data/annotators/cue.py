"""The embedded rationale writer: cites the words of the input that speak most for the asked-for label.

How much a word speaks for a label is its log-odds between the rows of that label and all others, in units of its
standard error (Monroe et al. 2008, "Fightin' Words"), counted over *other* training rows: the statistics for a row
leave out its whole fold, or nothing for rows outside training. Otherwise a rare word would point at its own row's
label, and a reward model would learn the leak instead of the task.

The rationale for a wrong label is written the same way, with as many words, so that nothing but the cited evidence
and the claim tells the two apart.
"""

import re
from collections.abc import Iterable, Iterator

import numpy as np

from rllr.data.annotators import Ask
from rllr.data.spec import TaskSpec

FOLDS = 5
WORD = re.compile(r"[^\W\d_]{2,}(?:['\u2019][^\W\d_]+)*|[^\W\d_](?:['\u2019][^\W\d_]+)+")  # not single letters
SHARED = ("almost no words", "few words", "some words", "most words", "almost all words")
SMOOTHING = 0.5
# English words that say nothing of a text's content; negations do.
_STOP = (
    "about after again all also although am an and any are as at be because been before being both but by can "
    "could did do does doing down during each even ever few for from further get gets got had has have having he "
    "he's her here here's hers herself him himself his how however i'd i'll i'm i've if in into is it it's its itself "
    "just let's like made make makes many may me might more most much must my myself of off on once one only or other "
    "our ours ourselves out over own quite rather really same she she's should so some such than that that's the their "
    "theirs them themselves then there there's these they they're they've this those though through thus to too under "
    "until up upon us very was we we're we've were what what's when where where's whether which while who who's whom "
    "whose why will with would yet you you're you've your yours yourself yourselves"
)
STOP_WORDS = frozenset([*_STOP.split(), *_STOP.replace("'", "\u2019").split()])


def words(text: str) -> list[str]:
    """The distinct words of a text in lower case, in order of appearance."""
    return list(dict.fromkeys(WORD.findall(text.lower())))


def cues(text: str, text2: str, pair: bool) -> list[str]:
    """What a rationale may cite: words of a text; of a pair, marked by `=` (in both), `<` or `>` (in one), and `~0`
    to `~4` for how much the two share.
    """
    first = words(text)
    if not pair:
        return [word for word in first if word not in STOP_WORDS]
    second = words(text2)
    both = set(first) & set(second)
    share = len(both) / max(1, len(set(first) | set(second)))
    return [
        f"~{min(4, int(share * 5))}",
        *(("=" if word in both else "<") + word for word in first if word not in STOP_WORDS),
        *(">" + word for word in second if word not in both | STOP_WORDS),
    ]


def phrase(cue: str) -> str:
    """How the rationale for a text pair cites one cue."""
    match cue[0]:
        case "~":
            return f"the two share {SHARED[int(cue[1:])]}"
        case "=":
            return f'both say "{cue[1:]}"'
        case "<":
            return f'only the first says "{cue[1:]}"'
        case _:
            return f'only the second says "{cue[1:]}"'


def sentence(cited: list[str], claim: str, pair: bool) -> str:
    """The rationale that cites these cues for a claim: the claim first, so that its words carry the decision."""
    claim = claim[0].upper() + claim[1:]
    if not cited:
        return f"{claim}, as the {'two texts' if pair else 'text'} as a whole {'suggest' if pair else 'suggests'}."
    if pair:
        return f"{claim}, as {' and '.join(map(phrase, cited))}."
    quoted = " and ".join(f'"{cue}"' for cue in cited)
    return f"{claim}, as {quoted} suggest{'' if len(cited) > 1 else 's'}."


class CueAnnotator:
    """Cue words by class log-odds.

    Args:
        cited: cues cited in one rationale.
        min_count: other training rows that must hold a cue before it may be cited.
        max_share: words in a larger share of the rows (function words) are not cited.
    """

    learns = True
    parallel = True

    def __init__(
        self,
        specs: dict[str, TaskSpec],
        cited: int = 1,
        min_count: int = 2,
        max_share: float = 0.3,
        folds: int = FOLDS,
    ) -> None:
        self.specs, self.cited, self.min_count, self.max_share, self.folds = specs, cited, min_count, max_share, folds
        self.classes = {name: {c: i for i, c in enumerate(spec.claims)} for name, spec in specs.items()}
        self.index: dict[str, dict[str, int]] = {}  # task -> cue -> row of the table
        self.table: dict[str, np.ndarray] = {}  # task -> [folds + 1, cues, classes]; the last for rows in no fold

    def count(self, rows: Iterable[Ask]) -> dict[str, tuple[list[str], np.ndarray, np.ndarray, np.ndarray]]:
        """Count training rows (an Ask with the row's own label and fold).

        Returns:
            task -> (cues, cue number [n], cell [n], count [n]) with cell = fold * classes + class; a cell's rows
            themselves are counted under the empty cue.
        """
        seen: dict[str, tuple[dict[str, int], list[int]]] = {}
        for row in rows:
            spec, classes = self.specs[row.task], self.classes[row.task]
            numbers, flat = seen.setdefault(row.task, ({}, []))
            cells = self.folds * len(classes)
            cell = row.fold * len(classes) + classes[spec.label_class(row.label)]
            for cue in ("", *cues(row.text, row.text2, spec.pair)):
                flat.append(numbers.setdefault(cue, len(numbers)) * cells + cell)
        result = {}
        for task, (numbers, flat) in seen.items():
            codes, count = np.unique(np.array(flat, dtype=np.int64), return_counts=True)
            number, place = np.divmod(codes, self.folds * len(self.classes[task]))
            result[task] = (list(numbers), number.astype(np.int32), place.astype(np.int16), count.astype(np.int32))
        return result

    def fit(self, counts: Iterator[dict]) -> None:
        """Add up what `count` returned, chunk by chunk, and compute every fold's table of log-odds."""
        numbers: dict[str, dict[str, int]] = {task: {"": 0} for task in self.specs}
        totals = {task: np.zeros((1024, self.folds * len(classes)), np.int32) for task, classes in self.classes.items()}
        for chunk in counts:
            for task, (found, number, cell, count) in chunk.items():
                known = numbers[task]
                place = np.array([known.setdefault(cue, len(known)) for cue in found])
                if len(known) > len(totals[task]):
                    grown = np.zeros((2 * len(known), totals[task].shape[1]), np.int32)
                    grown[: len(totals[task])] = totals[task]
                    totals[task] = grown
                totals[task][place[number], cell] += count
        for task, known in numbers.items():
            total = totals.pop(task)[: len(known)]
            kept = np.flatnonzero(total.sum(1) >= self.min_count)
            kept = kept[kept > 0]
            names = list(known)
            self.index[task] = {names[i]: row for row, i in enumerate(kept)}
            shape = (-1, self.folds, len(self.classes[task]))
            words = np.array([not name.startswith("~") for name in self.index[task]], bool)
            self.table[task] = self._log_odds(total[kept].reshape(shape), total[:1].reshape(shape)[0], words)

    def _log_odds(self, count: np.ndarray, rows: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Standardised log-odds [folds + 1, cues, classes]; `count` is [cues, folds, classes], `rows` [folds, classes].

        -inf marks cues that may not be cited: too rare or too common in the rows that this fold may see.
        """
        table = np.empty((self.folds + 1, len(count), count.shape[2]), np.float32)
        for fold in range(self.folds + 1):
            hidden = slice(fold, fold + 1)  # empty for the last, which sees every fold
            seen = count.sum(1) - count[:, hidden].sum(1)
            n = rows.sum(0) - rows[hidden].sum(0)
            inside, outside = seen + SMOOTHING, seen.sum(1, keepdims=True) - seen + SMOOTHING
            odds = np.log(inside / (n - seen + SMOOTHING)) - np.log(
                outside / (n.sum() - n - (seen.sum(1, keepdims=True) - seen) + SMOOTHING)
            )
            table[fold] = odds / np.sqrt(1 / inside + 1 / outside)
            total = seen.sum(1)
            table[fold][(total < self.min_count) | (words & (total > self.max_share * n.sum()))] = -np.inf
        return table

    def write(self, asks: list[Ask]) -> list[str]:
        rationales, last, known, scores = [], None, [], []
        for ask in asks:
            spec = self.specs[ask.task]
            if last != (ask.task, ask.id):  # the asks of a row stand together
                last, index = (ask.task, ask.id), self.index[ask.task]
                known = [cue for cue in cues(ask.text, ask.text2, spec.pair) if cue in index]
                scores = self.table[ask.task][ask.fold, [index[cue] for cue in known]].T.tolist()  # [classes][known]
            anchor = spec.label_class(ask.label)
            of_class = scores[self.classes[ask.task][anchor]]
            best = sorted(range(len(known)), key=of_class.__getitem__, reverse=True)
            # A second variant cites the next best cues.
            best = best[ask.variant * self.cited : (ask.variant + 1) * self.cited]
            cited = [known[i] for i in best if of_class[i] > -np.inf]
            rationales.append(sentence(cited, spec.claims[anchor], spec.pair))
        return rationales

    def summary(self) -> dict:
        return {"folds": self.folds, "cues": {task: len(index) for task, index in self.index.items()}}
