"""Supervised fine-tuning with LoRA on prompt -> response rows (methods sft and sft_wrat).

The loss is the mean over the response tokens of an optimiser batch, answers in a row's history included, as published.
A killed run resumes from its newest checkpoint.

    python workflow/scripts/sft.py --config results/tiny/sft_wrat/config.yaml --base results/tiny/base \\
        --data results/data/demo/sft_with_rat_train.jsonl --tasks results/data/demo/tasks.json \\
        --out results/tiny/sft_wrat

Writes <out>/adapter (PEFT) and <out>/train_log.jsonl.
"""

from dataclasses import asdict
from pathlib import Path

from rllr import cli
from rllr.config import load_stage
from rllr.files import stage_lock
from rllr.lm.tokens import IGNORED, Encoder
from rllr.rows import read_responses
from rllr.tasks import load_tasks
from rllr.train.trainer import TrainingConfig, train, trainer_arguments


def encode(rows: list[dict], encoder: Encoder) -> list[dict]:
    """Rows -> `input_ids` and `labels` (-100 but on answers and the EOS after each, earlier turns' included)."""
    encoded = []
    for row in rows:
        response = encoder.response(row["output"])
        prompt, labels = encoder.dialogue(row, room=len(response))
        ids = prompt + response
        encoded.append({"input_ids": ids, "labels": labels + response, "length": len(ids)})
    return encoded


def blank(eos: int) -> dict:
    """A row without response tokens: it fills up batches and weighs nothing."""
    return {"input_ids": [eos, eos], "labels": [IGNORED, IGNORED], "length": 2}


def make_trainer(**arguments):
    """trl's SFTTrainer with logits at response tokens only: its own loss also unembeds the prompt, half of the time."""
    import torch
    from torch.nn import functional as F
    from trl import SFTTrainer

    from rllr.train.batches import EveryRowOnce

    class ResponseTrainer(EveryRowOnce, SFTTrainer):
        def items(self, batch) -> torch.Tensor:
            return (batch["labels"][:, 1:] != IGNORED).sum()

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            labels = inputs.pop("labels")
            rows, places = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
            predicting["positions"] = rows, places
            logits = model(**inputs, use_cache=False).logits  # (N, V), N response tokens
            loss = F.cross_entropy(logits.float(), labels[rows, places + 1], reduction="sum") / num_items_in_batch
            return loss * self.accelerator.num_processes

    # Taken out on the way to the output layer, so that the call still goes through whatever wraps the model (DDP).
    predicting = {}
    trainer = ResponseTrainer(**arguments)
    unembed = trainer.accelerator.unwrap_model(trainer.model).get_base_model().get_output_embeddings()
    unembed.register_forward_pre_hook(lambda module, args: (args[0][predicting["positions"]],))
    return trainer


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved stage config (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--data", type=Path, required=True, help="sft_train.jsonl or sft_with_rat_train.jsonl")
    parser.add_argument("--tasks", type=Path, required=True, help="tasks.json of the data")
    parser.add_argument("--out", type=Path, required=True, help="stage folder")
    args = parser.parse_args()
    config = load_stage(TrainingConfig, args.config)
    rows = read_responses(args.data, load_tasks(args.tasks))

    # Heavy imports only once the input is known to be good.
    from datasets import Dataset
    from transformers import set_seed
    from trl import SFTConfig

    from rllr import checkpoints, ranks
    from rllr.lm import budget, models

    ranks.start()
    with stage_lock(args.out):
        folder = args.out / "checkpoints"
        kind = models.dtype(config.precision)
        tokenizer = models.load_tokenizer(args.base)
        encoder = Encoder(tokenizer, config.cutoff)
        encoded = encode(rows, encoder)
        encoder.report(str(args.data), [len(row["input_ids"]) for row in encoded])
        tokens = int(config.epochs * sum(len(row["input_ids"]) for row in encoded))
        budget.check(args.base, asdict(config), "sft", tokens, args.out)
        inputs = [args.config, args.base, args.data]
        checkpoints.prepare(folder, inputs)

        arguments = trainer_arguments(config, len(encoded), folder, kind)
        set_seed(config.seed)
        trainer = make_trainer(
            model=models.load_causal(args.base, kind, config.attention),
            args=SFTConfig(**arguments, remove_unused_columns=False),
            train_dataset=Dataset.from_list([*encoded, blank(tokenizer.eos_token_id)]),
            processing_class=tokenizer,
            peft_config=models.lora_config(config.lora, "CAUSAL_LM"),
        )
        models.cast_weights_not_activations(trainer.model)
        models.describe(trainer.model, kind)
        train(trainer, folder, args.out)
        checkpoints.finish(folder, inputs)


if __name__ == "__main__":
    cli.run(main)
