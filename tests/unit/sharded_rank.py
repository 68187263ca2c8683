"""One process of the test of a sharded reward model: a training step, then its scores of pairs; process 0 saves them.

RANK=0 WORLD_SIZE=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=... python tests/unit/sharded_rank.py base score result.json
"""

import json
import os
import sys
from pathlib import Path

import torch

HERE = Path(__file__).resolve()
sys.path[:0] = [str(HERE.parents[2] / "workflow" / "scripts"), str(HERE.parent)]

from rllr import ranks  # noqa: E402
from rllr.lm import models, rewards  # noqa: E402
from rllr.lm.claims import claim_ends  # noqa: E402
from rllr.lm.tokens import Encoder  # noqa: E402
from rllr.train import pairwise  # noqa: E402

LORA = {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}


def pairs() -> list[dict]:
    said = ["It is fine, as seen.\nLabel: positive", "It is dull, and long.\nLabel: negative"]
    row = {"task": "reviews", "instruction": "Good?", "label": "positive", "output": said}
    return [{**row, "id": str(i), "input": "a film " * (i + 1)} for i in range(5)]


def scored(base: str, score: str) -> list[list[float]]:
    from peft import get_peft_model

    torch.manual_seed(0)
    claims = score == "claim"
    plain = (models.load_causal if claims else models.load_scorer)(base, torch.float32, training=True)
    model = get_peft_model(plain, models.lora_config(LORA, "CAUSAL_LM" if claims else "SEQ_CLS"))
    if ranks.world() > 1:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (ranks.world(),))
        for layer in models.without_peft(model).model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        os.environ["ACCELERATE_USE_FSDP"] = "true"
    tokenizer = models.load_tokenizer(base)
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float().pow(2).sum().backward()
    ends = claim_ends(tokenizer, plain.config.vocab_size) if claims else None
    reward = rewards.Reward(model.eval(), ends)
    encoded = {"label_sensitive": pairwise.encode(pairs(), Encoder(tokenizer, 64))}
    _, found = pairwise.evaluate(reward, {"label_sensitive": pairs()}, encoded, tokenizer, 4, torch.float32)
    return [[row["chosen"], row["rejected"]] for row in found]


if __name__ == "__main__":
    ranks.start()
    found = scored(*sys.argv[1:3])
    if ranks.rank() == 0:
        Path(sys.argv[3]).write_text(json.dumps(found))
