"""What is counted while files are written, and reported afterwards."""

from collections import Counter

LENGTH_STEP = 8  # words per bar of the length histograms


def count_row(counts: Counter, file: str, task: str, label: str | None, words: int) -> None:
    """Count one written row: by task, by label, and by the words of its input."""
    counts["rows", file, task] += 1
    counts["label", file, task, label] += 1
    counts["words", file, words // LENGTH_STEP] += 1
