"""A model folder, an adapter or the pairs of prepared data on the Hugging Face hub, each with its card."""

import json
import shutil
import tempfile
from pathlib import Path

from rllr.cli import UserError, log
from rllr.data.catalogue import HELD_OUT_PAIRS
from rllr.files import has_rows, read_json, read_jsonl
from rllr.methods import REWARD_MODELS

# Sets of pairs as the hub shows them: name -> split -> file
PAIRS = {
    "label_sensitive": {
        "train": REWARD_MODELS["rm_rllr"].data,
        "validation": HELD_OUT_PAIRS["validation"][0],
        "test": HELD_OUT_PAIRS["label_sensitive"][0],
    },
    "rationale_sensitive": {"train": REWARD_MODELS["rm_rlhf"].data, "test": HELD_OUT_PAIRS["rationale_sensitive"][0]},
}


def push(folder: Path, name: str, private: bool) -> str:
    """Upload a folder under `owner/name`; returns its page. Who uploads is known from HF_TOKEN or `hf auth login`.

    Args:
        folder: results/<model>/<method>/model, results/<model>/<method>/adapter or results/data/<data>.

    Raises:
        UserError: none of these, or the hub refuses or cannot be reached.
    """
    from httpx import HTTPError
    from huggingface_hub import HfApi, constants, errors, get_token

    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"--push {name}: expected owner/name")
    if get_token() is None:
        raise UserError("nobody is logged in to the hub: hf auth login, or set HF_TOKEN to a token that may write")
    with tempfile.TemporaryDirectory() as staged:
        repo_type = stage(folder, Path(staged))
        api = HfApi()
        try:
            api.create_repo(name, repo_type=repo_type, private=private, exist_ok=True)
            if private and not api.repo_info(name, repo_type=repo_type).private:
                raise UserError(f"--push {name}: this repository is public; add --public, or give another name")
            api.upload_folder(
                repo_id=name,
                repo_type=repo_type,
                folder_path=staged,
                commit_message=f"{folder.parent.name}/{folder.name}",
            )
        except (errors.HfHubHTTPError, HTTPError, OSError) as error:
            raise UserError(f"{constants.ENDPOINT}/{name}: {str(error).splitlines()[0]}") from None
    return f"{constants.ENDPOINT}/{'datasets/' if repo_type == 'dataset' else ''}{name}"


def stage(folder: Path, out: Path) -> str:
    """Copy what is shared of `folder` into `out`, with its card; returns the hub's type of it."""
    if (folder / "tasks.json").is_file():
        pairs(folder, out)
        return "dataset"
    if (folder / "adapter_config.json").is_file():
        adapter(folder, out)
    elif (folder / "config.json").is_file() and (folder / "README.md").is_file():
        shutil.copytree(folder, out, dirs_exist_ok=True)
    else:
        raise UserError(
            f"{folder}: expected a method's folder model or adapter, or results/data/<data>; found none of their files"
        )
    return "model"


def adapter(folder: Path, out: Path) -> None:
    """A method's LoRA adapter, which says what it belongs on."""
    from rllr.config import load_yaml
    from rllr.methods import METHODS
    from rllr.predict.standalone import card

    method = folder.parent
    if method.name not in METHODS or not (method / "metrics.json").is_file():
        raise UserError(
            f"{method}: expected a method with metrics.json; a reward model's adapter has no card to go with"
        )
    metrics, used = read_json(method / "metrics.json"), read_json(method / "model.json")
    origin = read_json(method.parent / "base" / "origin.json")
    architecture = read_json(method.parent / "base" / "config.json")["model_type"]
    start = METHODS[method.name].start
    belongs = "the base model" if start == "base" else f"the merged {start} model of the same run, a folder of its own"
    text = card(load_yaml(method / "config.yaml"), metrics, used, origin, architecture)
    text = text.replace("library_name: transformers", "library_name: peft", 1)
    text = text.replace(
        "\n## Tasks\n", f"\nThis is a LoRA adapter in PEFT's format. It belongs on {belongs}.\n\n## Tasks\n", 1
    )
    head, _, tail = text.partition("\n## Use\n")
    _, _, settings = tail.partition("\n## Settings of the last stage\n")
    use = f'    model = peft.PeftModel.from_pretrained(model, "<this folder>")  # on {belongs}\n'
    for file in folder.iterdir():
        shutil.copyfile(file, out / file.name)
    (out / "README.md").write_text(
        f"{head}\n## Use\n\n{use}\n## Settings of the last stage\n{settings}", encoding="utf-8"
    )


def pairs(folder: Path, out: Path) -> None:
    """The pairs of prepared data. What they are made from stays here: it may name files and servers of one's own."""
    there = {
        name: {split: f"{file}.jsonl" for split, file in splits.items() if has_rows(folder / f"{file}.jsonl")}
        for name, splits in PAIRS.items()
    }
    there = {name: splits for name, splits in there.items() if splits}
    if not there:
        raise UserError(f"{folder}: no pairs; expected rows of label_pairs or rationale_pairs in the data's config")
    lines = ["---", "task_categories: [text-classification]", "tags: [rllr, preference]", "configs:"]
    for name, splits in there.items():
        files = [{"split": split, "path": path} for split, path in splits.items()]
        lines.append(f"- {json.dumps({'config_name': name, 'data_files': files})}")
    lines += ["---", "", f"# Pairs of {folder.name}", "", "Two answers to each prompt, `output: [chosen, rejected]`."]
    lines += [
        "Label-sensitive pairs differ in the label, rationale-sensitive ones in the rationale alone. The rows are"
    ]
    lines += ["their sources', under their licences; rationales are written by a program or a model.", ""]
    lines += ["| pairs | split | task | rows |", "|---|---|---|---:|"]
    for name, splits in there.items():
        for split, path in splits.items():
            shutil.copyfile(folder / path, out / path)
            counts: dict[str, int] = {}
            for _, row in read_jsonl(folder / path):
                counts[row["task"]] = counts.get(row["task"], 0) + 1
            lines += [f"| {name} | {split} | {task} | {count} |" for task, count in counts.items()]
    lines += ["", "## Tasks", ""]
    for task, fields in read_json(folder / "tasks.json").items():
        labels = ", ".join(fields["labels"]) or f"{fields['low']:g} to {fields['high']:g}"
        lines.append(f"- **{task}** ({fields['kind']}): {labels}")
    (out / "README.md").write_text("\n".join([*lines, ""]), encoding="utf-8")
    log(f"{folder}: {', '.join(path for splits in there.values() for path in splits.values())}")
