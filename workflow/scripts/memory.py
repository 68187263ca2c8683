"""Print the GPU memory that each model needs per stage, computed from the config (GiB on one device).

    python workflow/scripts/memory.py --models mistral llama2-13b

Counted for the longest rows that a stage's cutoff allows (rllr.lm.budget); shorter rows need less. `auto` counts as the
least that it can be: a batch size as one row, PPO's rollout batch as the responses of an iteration,
gradient_checkpointing as true. Sizes come from results/<model>/base/config.json where that exists, else from the table
of published sizes below.
"""

from pathlib import Path

from rllr.cli import UserError, parser, run
from rllr.config import SECTIONS, load_yaml, stage_config
from rllr.lm.budget import CONTEXT, Sizes, memory
from rllr.methods import METHODS

CONFIG = Path(__file__).resolve().parents[2] / "config"

# hidden, layers, heads, key-value heads, head size, inner, vocabulary: from each model's published config.json.
PUBLISHED = {
    "meta-llama/Llama-2-7b-chat-hf": Sizes(4096, 32, 32, 32, 128, 11008, 32000),
    "meta-llama/Llama-2-13b-chat-hf": Sizes(5120, 40, 40, 40, 128, 13824, 32000),
    "baichuan-inc/Baichuan2-7B-Chat": Sizes(4096, 32, 32, 32, 128, 11008, 125696),
    "baichuan-inc/Baichuan2-13B-Chat": Sizes(5120, 40, 40, 40, 128, 13696, 125696, alibi=True, shares=False),
    "THUDM/chatglm3-6b": Sizes(4096, 28, 32, 2, 128, 13696, 65024),
    "mistralai/Mistral-7B-Instruct-v0.2": Sizes(4096, 32, 32, 8, 128, 14336, 32000),
    "bigscience/bloom-3b": Sizes(2560, 30, 32, 32, 80, 10240, 250880, gated=False, tied=True, eager=True, shares=False),
    "bigscience/bloom-7b1": Sizes(
        4096, 30, 32, 32, 128, 16384, 250880, gated=False, tied=True, eager=True, shares=False
    ),
}
STAGES = ("sft", "sft_wrat", "rm_rlhf", "rm_rllr", "rlhf", "rllr", "rllr_mix", "dpo", "predict")


def sizes_of(model: str, config: dict, results: Path) -> Sizes:
    """The model's sizes, from its base folder or the table."""
    base = results / model / "base"
    sizes = Sizes.read(base) if (base / "config.json").is_file() else PUBLISHED.get(config["base"].get("id"))
    if sizes is None:
        raise UserError(f"{model}: its sizes are not known before results/{model}/base exists; build that first")
    return sizes


def table(models: list[str], results: Path) -> str:
    """A Markdown table: one row per model, one column per stage."""
    defaults = load_yaml(CONFIG / "stages.yaml")
    lines = [f"| model | parameters | {' | '.join(STAGES)} |", "|---|" + "---:|" * (len(STAGES) + 1)]
    for model in models:
        path = CONFIG / "models" / f"{model}.yaml"
        config = load_yaml(path)
        sizes = sizes_of(model, config, results)
        cells = []
        for stage in STAGES:
            resolved = stage_config(defaults, config, stage, 1, str(path))
            least = {"rollout_batch_size": resolved.get("batch_size", 1) * resolved.get("samples_per_prompt", 1)}
            resolved |= {"gradient_checkpointing": bool(resolved.get("gradient_checkpointing"))}
            auto = [key for key, value in resolved.items() if value == "auto" and key.endswith("batch_size")]
            resolved |= {key: least.get(key, 1) for key in auto}
            read = METHODS[stage].reward_models if stage in METHODS else []
            need = memory(sizes, resolved, SECTIONS[stage], rewards=len(read))
            cells.append(f"{(need['peak'] + CONTEXT) / 2**30:.1f}")
        lines.append(f"| {model} | {sizes.parameters() / 1e9:.2f} B | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    command = parser(__doc__)
    known = sorted(path.stem for path in (CONFIG / "models").glob("*.yaml"))
    paper = [name for name in known if load_yaml(CONFIG / "models" / f"{name}.yaml")["base"].get("id") in PUBLISHED]
    command.add_argument("--models", nargs="+", choices=known, default=paper, help="default: the paper's eight")
    command.add_argument("--results", type=Path, default=Path("results"), help="where base folders are looked for")
    args = command.parse_args()
    print(table(args.models, args.results))


if __name__ == "__main__":
    run(main)
