"""Train a reward model with LoRA on chosen / rejected pairs (rm_rlhf: rationale-sensitive, rm_rllr: label-sensitive).

    python workflow/scripts/reward.py --config results/tiny/rm_rllr/config.yaml --base results/tiny/sft_wrat/merged \\
        --data results/data/demo --out results/tiny/rm_rllr

Reads <data>/{rllr,rlhf}_reward_train.jsonl by the stage's name, then evaluates on the held-out pairs. Writes
<out>/adapter (PEFT, with its score head), <out>/metrics.json, <out>/pair_scores.jsonl and <out>/train_log.jsonl.
"""

from dataclasses import asdict
from pathlib import Path

from rllr import cli
from rllr.config import load_stage
from rllr.files import has_rows, stage_lock, write_json, write_jsonl
from rllr.lm.tokens import Encoder
from rllr.rows import read_pairs
from rllr.tasks import load_tasks
from rllr.train.trainer import TrainingConfig, train, trainer_arguments

# Held-out pairs that both reward models are judged on; `validation` calibrates the threshold tau.
HELD_OUT = {
    "label_sensitive": ("label_sensitive_pairs_for_test.jsonl", True),
    "rationale_sensitive": ("rationale_sensitive_pairs_for_test.jsonl", False),
    "validation": ("label_sensitive_pairs_for_validation.jsonl", True),
}


def encode(rows: list[dict], encoder: Encoder) -> list[dict]:
    """Pairs -> `chosen_ids`, `rejected_ids`, with one prompt that leaves room for the longer side."""
    encoded = []
    for row in rows:
        chosen, rejected = (encoder.response(text) for text in row["output"])
        longer = max(len(chosen), len(rejected))
        prompt = encoder.prompt(row, room=longer)
        ids = {"chosen_ids": prompt + chosen, "rejected_ids": prompt + rejected}
        encoded.append({**ids, "length": len(prompt) + longer})
    return encoded


def blank(eos: int) -> dict:
    """A pair of equal sides: it fills up batches and weighs nothing."""
    return {"chosen_ids": [eos], "rejected_ids": [eos], "length": 1}


def make_trainer(model, pad: int, **arguments):
    """trl's RewardTrainer with the recipe's loss over tokens instead of over the last score alone."""
    import torch
    from trl import RewardTrainer

    from rllr import ranks
    from rllr.train.batches import EveryRowOnce
    from rllr.train.pairwise import pairwise_loss, response_scores

    def differ(ids):  # (2B, T) chosen, then rejected -> (B,) bool: all but blank pairs
        chosen, rejected = ids.chunk(2)
        return (chosen != rejected).any(1)

    class PairTrainer(EveryRowOnce, RewardTrainer):
        def items(self, batch) -> torch.Tensor:
            return differ(batch["input_ids"]).sum()

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            model(**inputs, use_cache=False)
            chosen, rejected = captured["scores"].squeeze(-1).chunk(2)
            chosen_ids, rejected_ids = inputs["input_ids"].chunk(2)
            wins = response_scores(chosen, chosen_ids != pad) > response_scores(rejected, rejected_ids != pad)
            real = differ(inputs["input_ids"])
            right, pairs = ranks.total(torch.stack([(wins & real).sum(), real.sum()]).float()).tolist()
            if pairs:
                self._metrics["train"]["pair_accuracy"].append(right / pairs)
            losses = pairwise_loss(chosen, rejected, chosen_ids, rejected_ids, pad)
            return losses.sum() / num_items_in_batch * self.accelerator.num_processes

    # The model's forward returns the last score only; the head's per-token output is caught on its way, so that
    # the call still goes through whatever wraps the model (DDP).
    captured = {}
    trainer = PairTrainer(model=model, **arguments)
    head = trainer.model.get_base_model().score.modules_to_save["default"]
    head.register_forward_hook(lambda module, args, output: captured.update(scores=output))
    return trainer


def evaluate(model, rows_of: dict[str, list[dict]], encoder: Encoder, batch_size: int) -> tuple[dict, list[dict]]:
    """metrics.json and the scores behind it."""
    from rllr.train.pairwise import pair_metrics, score_sequences

    pad, metrics, scored = encoder.tokenizer.pad_token_id, {}, []
    for name, rows in rows_of.items():
        encoded = encode(rows, encoder)
        sides = [
            score_sequences(model, [row[side] for row in encoded], pad, batch_size, f"scoring {name}")
            for side in ("chosen_ids", "rejected_ids")
        ]
        metrics[name] = pair_metrics(rows, *sides)
        if name == "validation":
            metrics["chosen_median_validation"] = sides[0].median().item()
        scored += [
            {"set": name, "id": row["id"], "task": row["task"], "chosen": c, "rejected": r}
            for row, c, r in zip(rows, *(side.tolist() for side in sides), strict=True)
        ]
    return {**metrics.pop("label_sensitive"), **metrics}, scored


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("--config", type=Path, required=True, help="resolved stage config (YAML)")
    parser.add_argument("--base", type=Path, required=True, help="folder of the merged sft_wrat model")
    parser.add_argument("--data", type=Path, required=True, help="folder of the prepared data")
    parser.add_argument("--out", type=Path, required=True, help="stage folder")
    args = parser.parse_args()
    config = load_stage(TrainingConfig, args.config)
    tasks = load_tasks(args.data / "tasks.json")
    label_sensitive = config.stage == "rm_rllr"
    train_file = args.data / ("rllr_reward_train.jsonl" if label_sensitive else "rlhf_reward_train.jsonl")
    rows = read_pairs(train_file, tasks, label_sensitive)
    held_out = {
        name: read_pairs(args.data / file, tasks, sensitive)
        for name, (file, sensitive) in HELD_OUT.items()
        if name == "label_sensitive" or has_rows(args.data / file)
    }

    from datasets import Dataset
    from transformers import set_seed
    from trl import RewardConfig

    from rllr import checkpoints, ranks
    from rllr.lm import budget, models

    ranks.start()
    with stage_lock(args.out):
        folder = args.out / "checkpoints"
        kind = models.dtype(config.precision)
        tokenizer = models.load_tokenizer(args.base)
        encoder = Encoder(tokenizer, config.cutoff)
        encoded = encode(rows, encoder)
        lengths = [len(row[side]) for row in encoded for side in ("chosen_ids", "rejected_ids")]
        encoder.report(str(train_file), lengths)
        budget.check(args.base, asdict(config), "reward", int(config.epochs * sum(lengths)), args.out)
        inputs = [args.config, args.base, train_file]
        checkpoints.prepare(folder, inputs)

        arguments = trainer_arguments(config, len(encoded), folder, kind)
        set_seed(config.seed)
        trainer = make_trainer(
            models.load_scorer(args.base, kind, config.attention),
            tokenizer.pad_token_id,
            args=RewardConfig(**arguments, disable_dropout=False, remove_unused_columns=False),
            train_dataset=Dataset.from_list([*encoded, blank(tokenizer.eos_token_id)]),
            processing_class=tokenizer,
            peft_config=models.lora_config(config.lora, "SEQ_CLS"),
        )
        models.cast_weights_not_activations(trainer.model)
        models.describe(trainer.model, kind)
        train(trainer, folder, args.out)

        model = trainer.accelerator.unwrap_model(trainer.model).eval()
        with models.autocast(kind):
            metrics, scored = evaluate(model, held_out, Encoder(tokenizer, config.cutoff), 2 * config.micro_batch_size)
        if ranks.rank() == 0:
            write_jsonl(args.out / "pair_scores.jsonl", scored)
            write_json(args.out / "metrics.json", {"model": config.model, "reward_model": config.stage, **metrics})
        cli.log(f"pair accuracy {metrics['pair_accuracy']:.3f}, mean margin {metrics['mean_margin']:.2f}")
        checkpoints.finish(folder, inputs)


if __name__ == "__main__":
    cli.run(main)
