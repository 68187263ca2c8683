"""From raw rows to the data files that the stages read: sources, hygiene, annotators, pairs, report."""

SPLITS = ("train", "test")

# file -> fields of a row; a pair's `output` is [chosen, rejected].
FILES = {
    "sft_train": ("id", "task", "instruction", "input", "output", "label"),
    "sft_with_rat_train": ("id", "task", "instruction", "input", "output", "label"),
    "unsupervised": ("id", "task", "instruction", "input", "label"),
    "rlhf_reward_train": ("id", "task", "instruction", "input", "output", "label"),
    "rllr_reward_train": ("id", "task", "instruction", "input", "output", "label", "rejected_label"),
    "label_sensitive_pairs_for_test": ("id", "task", "instruction", "input", "output", "label", "rejected_label"),
    "label_sensitive_pairs_for_validation": ("id", "task", "instruction", "input", "output", "label", "rejected_label"),
    "rationale_sensitive_pairs_for_test": ("id", "task", "instruction", "input", "output", "label"),
    "validation": ("id", "task", "instruction", "input", "label"),
    "test": ("id", "task", "instruction", "input", "label"),
}

# file -> the key under `rows` of a data config that asks for it
ASKED_BY = {
    "sft_train": "sft",
    "sft_with_rat_train": "sft",
    "unsupervised": "unsupervised",
    "rlhf_reward_train": "rationale_pairs",
    "rllr_reward_train": "label_pairs",
    "label_sensitive_pairs_for_test": "test_label_pairs",
    "label_sensitive_pairs_for_validation": "validation_label_pairs",
    "rationale_sensitive_pairs_for_test": "test_rationale_pairs",
    "validation": "validation",
    "test": "test",
}


def asks_for(config: dict, file: str) -> str | None:
    """The key by which a data config (as read from its YAML) asks for rows in `file`; None if it does not."""
    if "release" in config:
        if "validation" in file:  # drawn from the training files
            return "release.validation" if config["release"].get("validation", 100) else None
        return f"release.files.{file}" if file in config["release"]["files"] else None
    use = ASKED_BY[file]
    asked = config["rows"].get(use)
    some = any(asked.values()) if isinstance(asked, dict) else asked
    return f"rows.{use}" if some else None
