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
