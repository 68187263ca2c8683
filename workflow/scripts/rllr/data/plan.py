"""Which row goes into which file: hygiene and sampling on arrays of hashes, without the texts."""

from dataclasses import dataclass, field

import numpy as np

from rllr.cli import UserError, log
from rllr.data.mixing import mix
from rllr.data.spec import TRAIN_USES, DataConfig

# One bit for each use that a row can be put to.
USES = {
    use: 1 << bit
    for bit, use in enumerate(
        ("test", "test_label_pairs", "test_rationale_pairs", *TRAIN_USES, "validation_label_pairs", "statistics")
    )
}
REPORTED = ("sft", "label_pairs", "rationale_pairs", "unsupervised", "validation", "test")  # whose overlaps matter
# What is drawn from the rows of another use rather than from free training rows.
WITHIN = {"test_label_pairs": "test", "test_rationale_pairs": "test", "validation_label_pairs": "validation"}


@dataclass
class Rows:
    """The rows that passed the checks, as arrays of one length (row order: tasks, then sources, as read)."""

    task: np.ndarray  # uint8, index into the config's tasks
    split: np.ndarray  # uint8, 0 train, 1 test
    label: np.ndarray  # int32, index of the label (of the claim, for a score)
    exact: np.ndarray  # uint64, hash of the texts
    key: np.ndarray  # uint64, hash of the normalised texts
    content: np.ndarray  # uint64, the same whichever of two texts comes first: what must not be held out and trained on
    offset: np.ndarray  # int64, byte where the row starts in the spool; one more: where the last row ends


@dataclass
class Plan:
    uses: np.ndarray  # uint16, bits of USES
    rank: np.ndarray  # uint64, the row's random number: draws and file order go by it
    donor: np.ndarray  # int64, a row of the same task, label and side (training or test), -1 if there is none
    hygiene: dict[str, dict[str, int]] = field(default_factory=dict)  # task -> what was found -> rows
    asked: dict[str, dict[str, tuple[int, int]]] = field(default_factory=dict)  # use -> task -> (asked, got)


def share_out(value: int | str | dict, capacity: dict[str, int]) -> dict[str, int]:
    """Rows asked for, per task. A total is divided evenly; what a small task cannot give, the others do.

    >>> share_out(100, {"a": 1000, "b": 20})
    {'a': 80, 'b': 20}
    """
    if value == "all":
        return dict(capacity)
    if isinstance(value, dict):
        return {t: capacity[t] if value.get(t) == "all" else value.get(t, 0) for t in capacity}
    asked, left, tasks = {}, int(value), sorted(capacity, key=capacity.__getitem__)
    for position, task in enumerate(tasks):
        asked[task] = min(left // (len(tasks) - position), capacity[task])
        left -= asked[task]
    asked[tasks[-1]] += left  # no task can give it: the shortage is reported
    return {task: asked[task] for task in capacity}


def make_plan(config: DataConfig, rows: Rows, pairs_per_row: dict[str, int]) -> Plan:
    """Remove duplicates and train rows that are in a test set, then draw every use's rows.

    Args:
        pairs_per_row: task -> label-sensitive pairs that one row gives.

    Raises:
        UserError: a task has no rows left for training, or a use none at all.
    """
    names = list(config.specs)
    uses = np.zeros(len(rows.task), np.uint16)
    plan = Plan(uses=uses, rank=mix(rows.key, config.seed + 1), donor=np.full(len(uses), -1, np.int64))
    by_rank = np.argsort(plan.rank, kind="stable")
    free, test = {}, {}
    for number, name in enumerate(names):
        of_task = by_rank[rows.task[by_rank] == number]
        train, given = (np.sort(of_task[rows.split[of_task] == split]) for split in (0, 1))
        unique = _first_of_each(rows.key[train])
        exact = len(train) - len(np.unique(rows.exact[train]))
        labelled = np.unique(rows.key[train] ^ mix(rows.label[train].astype(np.uint64), 1))
        plan.hygiene[name] = {
            "train rows": len(train),
            "test rows": len(given),
            "exact duplicates in train, removed": exact,
            "normalised duplicates in train, removed": len(train) - len(unique) - exact,
            "texts with two labels in train, first kept": len(labelled) - len(unique),
            "duplicates in test, kept": len(given) - len(np.unique(rows.key[given])),
        }
        free[name] = train[unique][np.argsort(plan.rank[train[unique]], kind="stable")]
        test[name] = given[np.argsort(plan.rank[given], kind="stable")]

    # 1. Test rows: the source's own, or carved from its only split.
    carved = {name for name, spec in config.specs.items() if "test" not in spec.sources}
    capacity = {name: len(free[name] if name in carved else test[name]) for name in names}
    held_out = {name: rows.content[test[name]] for name in names}
    for name, count in _asked(config, plan, "test", capacity).items():
        chosen = (free if name in carved else test)[name][:count]
        uses[chosen] |= USES["test"]
        held_out[name] = np.concatenate([held_out[name], rows.content[chosen]])

    # 2. Training rows: none that stands in any task's test set.
    for name in names:
        free[name] = free[name][uses[free[name]] & USES["test"] == 0]
        for other, held in held_out.items():
            free[name] = _without(held, f"the test set of {other}", name, free[name], rows, plan)
        if not len(free[name]):
            raise UserError(f"task {name}: no rows are left for training once the test rows are set aside")

    # 3. The uses of training rows, and the subsets of test and validation rows.
    for use in (*TRAIN_USES, *WITHIN):
        within = WITHIN.get(use)
        taken = USES["validation"] | sum(USES[other] for other in config.avoid.get(use, ()))
        pool = {}
        for name in names:
            if within:
                of_task = by_rank[rows.task[by_rank] == names.index(name)]
                pool[name] = of_task[uses[of_task] & USES[within] > 0]
            else:
                pool[name] = free[name][uses[free[name]] & taken == 0]
        per_row = pairs_per_row if use.endswith("label_pairs") else dict.fromkeys(names, 1)
        asked = _asked(config, plan, use, {name: len(pool[name]) * per_row[name] for name in names})
        for name, count in asked.items():
            uses[pool[name][: -(-count // per_row[name])]] |= USES[use]
        if use == "validation":  # no other row of that text, of whichever task, is trained on
            drawn = {name: free[name][uses[free[name]] & USES[use] > 0] for name in names}
            for name in names:
                others = free[name][uses[free[name]] & USES[use] == 0]
                for other, held in drawn.items():
                    where = f"the validation slice of {other}"
                    others = _without(rows.content[held], where, name, others, rows, plan)
                left = np.concatenate([drawn[name], others])
                free[name] = left[np.argsort(plan.rank[left], kind="stable")]
    for name in names:
        counted = free[name][uses[free[name]] & USES["validation"] == 0]
        uses[counted] |= USES["statistics"]
    _set_donors(plan, rows)
    return plan


def _without(held_out: np.ndarray, where: str, name: str, of_task: np.ndarray, rows: Rows, plan: Plan) -> np.ndarray:
    """The rows of a task whose content is not held out; the others are counted."""
    kept = of_task[~np.isin(rows.content[of_task], held_out)]
    plan.hygiene[name][f"train rows that stand in {where}, removed"] = len(of_task) - len(kept)
    return kept


def _first_of_each(keys: np.ndarray) -> np.ndarray:
    """Sorted positions of the first row of every distinct key."""
    return np.sort(np.unique(keys, return_index=True)[1])


def _asked(config: DataConfig, plan: Plan, use: str, capacity: dict[str, int]) -> dict[str, int]:
    """What each task gives for a use, noting where it cannot give what was asked."""
    asked = share_out(config.rows.get(use, 0), capacity)
    got = {name: min(count, capacity[name]) for name, count in asked.items()}
    plan.asked[use] = {name: (asked[name], got[name]) for name in asked}
    for name, count in asked.items():
        if got[name] < count:
            log(f"rows.{use}: {count} asked of task {name}, which has {got[name]}")
    if any(asked.values()) and not any(got.values()):
        others = ", ".join(config.avoid.get(use, ())) or "other uses"
        raise UserError(f"rows.{use}: no rows are left for it; give fewer to {others}, or see `avoid`")
    return got


def _set_donors(plan: Plan, rows: Rows) -> None:
    """Give every row the next row (by rank) of the same task, label and side as the donor of a foreign rationale."""
    side = plan.uses & USES["test"] > 0
    used = np.flatnonzero(plan.uses & (USES["rationale_pairs"] | USES["test_rationale_pairs"]))
    order = used[np.lexsort((plan.rank[used], rows.label[used], side[used], rows.task[used]))]
    group = np.stack([rows.task[order], side[order], rows.label[order]]).astype(np.int64)
    for members in np.split(order, np.flatnonzero((group[:, 1:] != group[:, :-1]).any(0)) + 1):
        if len(members) > 1:
            plan.donor[members] = np.roll(members, -1)


def overlaps(plan: Plan) -> dict[str, dict[str, int]]:
    """Rows that two uses share; on the diagonal the rows of a use."""
    masks = {use: plan.uses & USES[use] > 0 for use in REPORTED}
    return {a: {b: int(np.sum(masks[a] & masks[b])) for b in REPORTED} for a in REPORTED}
