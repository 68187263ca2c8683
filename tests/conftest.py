"""Shared by all tests: the programs' folder on the path, a tiny model with reward adapters in their files' format."""

import json
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = ROOT / "workflow" / "scripts"
sys.path[:0] = [str(PROGRAMS), str(ROOT / "tests" / "unit")]
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):  # PyTorch's threads of two workers hinder each other
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def tokenizer():
    """A byte-level tokenizer: 256 bytes and three special tokens, pad <|endoftext|>, eos <|im_end|>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {t: i for i, t in enumerate([*specials, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token=specials[2], pad_token=specials[0])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


@pytest.fixture(scope="session")
def merged(tmp_path_factory, tokenizer):
    """A folder with a random two-layer Llama in fp32 and the tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("merged")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=None, eos_token_id=2,
        tie_word_embeddings=False, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reward_folders(tmp_path_factory, merged):
    """Two random reward models as the reward stage writes them: {"rm_rllr": adapter folder, "rm_rlhf": ...}."""
    import torch
    from peft import get_peft_model

    from rllr.lm import models
    from rllr.train.trainer import save_adapter

    folders = {}
    for seed, role in enumerate(["rm_rllr", "rm_rlhf"]):
        torch.manual_seed(seed + 1)
        lora = {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]}
        model = get_peft_model(models.load_scorer(merged, torch.float32), models.lora_config(lora, "SEQ_CLS"))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.3)
        folders[role] = tmp_path_factory.mktemp(role) / "adapter"
        save_adapter(model, folders[role])
    return folders


@pytest.fixture(scope="session")
def demo_tasks():
    from rllr.tasks import Task

    return {
        "movie_reviews": Task("movie_reviews", "label", ("negative", "positive")),
        "headlines": Task("headlines", "label", ("business", "entertainment", "politics", "sports", "tech")),
    }


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
