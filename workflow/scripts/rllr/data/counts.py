"""What is counted while files are written, and reported afterwards."""

from collections import Counter


def count_row(counts: Counter, file: str, task: str, row: dict, words: int) -> None:
    """Count one written row: by task, by label, by the labels of its pair, and by the words of its input."""
    label = row.get("label")
    counts["rows", file, task] += 1
    counts["label", file, task, label] += 1
    counts["words", file, words] += 1
    if "rejected_label" in row:
        counts["pair", file, task, label, row["rejected_label"]] += 1
