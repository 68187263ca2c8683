"""The prepared data files: what a row holds, which key of a data config asks for them, which stage needs them."""

from rllr.methods import METHODS, REWARD_MODELS

SPLITS = ("train", "test")

_PROMPT = ("id", "task", "instruction", "input", "label")
_RESPONSE = ("id", "task", "instruction", "input", "output", "label")
_LABEL_PAIR = (*_RESPONSE, "rejected_label")

# file -> fields of a row (a pair's `output` is [chosen, rejected]), and the key under `rows` that asks for it
_FILES = {
    "sft_train": (_RESPONSE, "sft"),
    "sft_with_rat_train": (_RESPONSE, "sft"),
    "sft_with_rat_all": (_RESPONSE, "sft"),  # with the rows of label_pairs: what SFT or the label reward model sees
    "unsupervised": (_PROMPT, "unsupervised"),
    "rlhf_reward_train": (_RESPONSE, "rationale_pairs"),
    "rllr_reward_train": (_LABEL_PAIR, "label_pairs"),
    "label_sensitive_pairs_for_test": (_LABEL_PAIR, "test_label_pairs"),
    "label_sensitive_pairs_for_validation": (_LABEL_PAIR, "validation_label_pairs"),
    "rationale_sensitive_pairs_for_test": (_RESPONSE, "test_rationale_pairs"),
    "validation": (_PROMPT, "validation"),
    "test": (_PROMPT, "test"),
}
FILES = {file: fields for file, (fields, _) in _FILES.items()}
ASKED_BY = {file: key for file, (_, key) in _FILES.items()}

# Held-out pairs that every reward model is judged on -> (file, whether the sides differ in the label). `validation`
# calibrates the threshold tau.
HELD_OUT_PAIRS = {
    "label_sensitive": ("label_sensitive_pairs_for_test", True),
    "rationale_sensitive": ("rationale_sensitive_pairs_for_test", False),
    "validation": ("label_sensitive_pairs_for_validation", True),
}
# Files whose responses answers are like: how long these may have to be.
ANSWERS = tuple(dict.fromkeys(method.answers_like for method in METHODS.values()))


def files_of(stage: str) -> list[str]:
    """The data files that decide a stage's result."""
    if stage in REWARD_MODELS:
        return [REWARD_MODELS[stage].data, *(file for file, _ in HELD_OUT_PAIRS.values())]
    if stage in METHODS:
        method = METHODS[stage]
        return [str(method.data), *(["validation", method.answers_like] if method.section == "ppo" else [])]
    return {"predict": ["test", "validation", *ANSWERS], "quality": ["validation", *ANSWERS]}[stage]


def needed_files(stage: str) -> list[str]:
    """Those of them that it cannot do without."""
    optional = {"validation", *(file for file, _ in HELD_OUT_PAIRS.values())} - {"label_sensitive_pairs_for_test"}
    if stage == "quality":
        optional = set()
    if stage not in METHODS:  # those that it reads are asked for by the stage that is trained on them
        optional |= {*ANSWERS}
    return [file for file in files_of(stage) if file not in optional]


def asks_for(config: dict, file: str) -> str | None:
    """The key by which a data config (as read from its YAML) asks for rows in `file`; None if it does not."""
    if "release" in config:
        if "validation" in file:  # drawn from the training files
            return "release.validation" if config["release"].get("validation", 100) else None
        return f"release.files.{file}" if file in config["release"]["files"] else None
    asked = config.get("rows", {}).get(ASKED_BY[file])
    some = any(asked.values()) if isinstance(asked, dict) else asked
    return f"rows.{ASKED_BY[file]}" if some else None


def missing_rows(config: dict, file: str) -> str:
    """The complaint that a data config asks for no rows in `file`."""
    if "release" not in config:
        return f"rows.{ASKED_BY[file]}: missing"
    return f"release.files.{file}: missing" if file != "sft_with_rat_all" else "a release has no such file"
