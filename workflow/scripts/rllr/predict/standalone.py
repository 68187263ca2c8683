"""A method's model as a folder of its own, with its model card."""

import json
from pathlib import Path

from rllr.files import atomic_dir
from rllr.methods import METHODS
from rllr.tasks import ANSWER
from rllr.version import told

# What a Python program says first to load the one base model that transformers does not know.
OWN_CLASS = {
    "baichuan2-13b": [
        "    # The model class comes from the RLLR project: put its folder workflow/scripts on PYTHONPATH.",
        "    from rllr.base import register",
        "",
        "    register()",
    ]
}


def card(config: dict, metrics: dict, used: dict, origin: dict, model_type: str) -> str:
    """The model card (README.md), filled from the run.

    Args:
        config: resolved config of the stage. metrics, used, origin: metrics.json, model.json, origin.json.
        model_type: the architecture's name in transformers.
    """
    name = f"{metrics['model']} {metrics['method']}"
    scores = [
        f"| {task} | {v['metric']} | {100 * v['value']:.1f} | {100 * v['ci95'][0]:.1f} to {100 * v['ci95'][1]:.1f} "
        f"| {v['n']} | {v['unparsed']} |"
        for task, v in metrics["tasks"].items()
    ]

    def instruction(task: str) -> str:
        return repr(used["instructions"][task]) if task in used["instructions"] else "an instruction for each text"

    asked = [
        f"- **{task}**: {instruction(task)}, "
        + (f"a number in {t['low']:g} to {t['high']:g}" if t["kind"] == "score" else "one of " + ", ".join(t["labels"]))
        + ("" if t["input"] == "{text}" else f"; the text is {t['input']!r}")
        + ("" if t["answer"] == ANSWER else f"; the label is what the group of {t['answer']!r} matches last")
        for task, t in used["tasks"].items()
    ]
    settings = [f"    {key}: {json.dumps(value)}" for key, value in config.items()]
    return "\n".join(
        [
            "---",
            # Both come from outside: quoted, so that no text breaks the header.
            f"license: {json.dumps(str(origin['licence']).lower())}",
            f"base_model: {json.dumps(origin['id'])}",
            "pipeline_tag: text-generation",
            "library_name: transformers",
            "tags: [rllr, text-classification]",
            "---",
            "",
            f"# {name}",
            "",
            f"Answers a language-understanding task as text. Recipe: {METHODS[metrics['method']].recipe}.",
            "",
            f"- Base model: {origin['id']} (revision {origin['revision']}), licence {origin['licence']},"
            f" {origin['parameters'] / 1e6:,.1f} million parameters",
            f"- Data: {metrics['data']}",
            f"- Made with {told(used.get('made_with'))}",
            "",
            "## Tasks",
            "",
            "The user's turn is the instruction, a newline, and the text. The answer's last line is `Label: <label>`"
            " unless the task says otherwise.",
            "",
            *asked,
            "",
            "## Metrics",
            "",
            f"Greedy answers to {metrics['n']} held-out rows, in percent; the mean over tasks is "
            f"{100 * metrics['score']:.1f}.",
            "",
            "| task | metric | value | 95% interval | rows | unparsed |",
            "| --- | --- | ---: | ---: | ---: | ---: |",
            *scores,
            "",
            "## Use",
            "",
            "    from transformers import AutoModelForCausalLM, AutoTokenizer",
            *OWN_CLASS.get(model_type, []),
            "",
            '    tokenizer = AutoTokenizer.from_pretrained("<this folder>")',
            '    model = AutoModelForCausalLM.from_pretrained("<this folder>")',
            '    turn = {"role": "user", "content": "<instruction>\\n<text>"}',
            "    ids = tokenizer.apply_chat_template(",
            "        [turn],",
            "        add_generation_prompt=True,",
            "        sanitize_control_tokens=True,  # a control token in the text stays text",
            '        return_tensors="pt",',
            "        return_dict=True,",
            "    )",
            f"    answer = model.generate(**ids, max_new_tokens={used['max_new_tokens']})",
            '    print(tokenizer.decode(answer[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))',
            "",
            "## Settings of the last stage",
            "",
            *settings,
            "",
        ]
    )


def export(base: Path, adapter: Path | None, config: dict, metrics: dict, used: dict, origin: dict, out: Path) -> None:
    """Merge a method's adapter in fp32, store it in the base model's dtype, with tokenizer and card.

    Args:
        base: folder of the model that `adapter` belongs to. config ... origin: as for `card`.
    """
    import torch
    from transformers import AutoConfig, GenerationConfig

    from rllr.base import register
    from rllr.lm import models
    from rllr.lm.generation import stop_ids

    register()
    stored = AutoConfig.from_pretrained(base)
    text = card(config, metrics, used, origin, stored.model_type)
    tokenizer = models.load_tokenizer(base)
    model = models.load_adapter(base, adapter, torch.float32).to(stored.dtype or torch.float32)
    # Greedy, as it was measured; the base model's own sampling settings do not apply.
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=stop_ids(model, tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    with atomic_dir(out) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(text, encoding="utf-8")
