"""One frozen backbone, several LoRA adapters: policy, value, one or two reward models.

The reference policy is the backbone with every adapter off. Heads (value, rewards) are fp32 linear layers of ours:
PEFT drops the head of a SEQ_CLS adapter without a word when it is loaded onto a causal model.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file

from rllr.cli import UserError
from rllr.lm import models
from rllr.lm.claims import claim_ends, claim_part
from rllr.lm.packing import Packed, shares_prompts
from rllr.lm.rewards import log_likelihood, scores_claims


class Backbone:
    """The shared model. Passes are made under one adapter at a time; only `policy` and `value` are trained.

    Args:
        folder: the merged sft_wrat model.
        lora: rank, alpha and targets of the policy's fresh adapter (its dropout is not used: PPO has none).
        rewards: reward-model stage folders by role, e.g. {"rm_rllr": Path(...), "rm_rlhf": Path(...)}.
        value_from: the role whose adapter and head the value function starts from; None: a fresh adapter, zero head.
        critic: whether there is a value function at all.
    """

    def __init__(
        self,
        folder: Path,
        lora: dict,
        rewards: dict[str, Path],
        value_from: str | None,
        dtype: torch.dtype,
        gradient_checkpointing: bool = False,
        attention: str = "auto",
        critic: bool = True,
    ) -> None:
        self.folder, self.dtype = folder, dtype
        self.checkpointing = gradient_checkpointing
        fresh = LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"],
            lora_dropout=0.0,
            target_modules=list(lora["target_modules"]),
            task_type="CAUSAL_LM",
        )
        self.model = get_peft_model(
            models.load_causal(folder, dtype, attention, training=True), fresh, adapter_name="policy"
        )
        self.plain = self.model.get_base_model()
        self.trunk = getattr(self.plain, self.plain.base_model_prefix)
        self.unembed = self.plain.get_output_embeddings()
        self.device = next(self.model.parameters()).device
        self.shared = shares_prompts(self.plain)
        hidden = self.plain.config.get_text_config().hidden_size
        self.heads: Any = torch.nn.ModuleDict()  # of Fp32Head
        self.claims: dict[str, torch.Tensor] = {}  # reward models that score claims -> the tokens that end one
        for role, path in rewards.items():
            self._add_reward(role, path, hidden)
        if critic and value_from and not scores_claims(rewards[value_from]):
            self._add_reward("value", rewards[value_from], hidden)
        elif critic:
            self.model.add_adapter("value", fresh)
            self.heads["value"] = models.Fp32Head(hidden, 1, bias=False)
            torch.nn.init.zeros_(self.heads["value"].weight)  # type: ignore[arg-type]  # a Fp32Head
        self.heads.to(self.device)
        models.cast_weights_not_activations(self.model)
        if gradient_checkpointing:
            self.plain.gradient_checkpointing_enable({"use_reentrant": False})
            self.model.enable_input_require_grads()
        self.layers = [m for m in self.model.modules() if isinstance(m, LoraLayer)]
        self.heads.requires_grad_(False)
        trained = set(self.trained().values())
        self.requires_grad = [(p, p in trained) for p in [*self.model.parameters(), *self.heads.parameters()]]
        self.use("policy")
        self._check_unembedding()

    def _add_reward(self, role: str, folder: Path, hidden: int) -> None:
        """Load a reward adapter: its LoRA part through PEFT, its head, if it has one, into a layer of ours.

        Raises:
            UserError: a tensor is missing, left over or of the wrong shape.
        """
        claims = scores_claims(folder)
        config = LoraConfig(**_adapter_config(folder))
        state = load_file(folder / "adapter_model.safetensors")
        score = state.pop("base_model.model.score.weight", None)
        if not claims and (score is None or tuple(score.shape) != (1, hidden)):
            raise UserError(f"{folder}: no score head of shape (1, {hidden}) in adapter_model.safetensors")
        self.model.add_adapter(role, config)
        result = set_peft_model_state_dict(self.model, state, adapter_name=role)
        missing = [key for key in result.missing_keys if f".{role}." in key]
        if missing or result.unexpected_keys:
            raise UserError(
                f"{folder}: does not fit the backbone: missing {missing}, left over {result.unexpected_keys}"
            )
        if claims:
            self.claims[role] = claim_ends(models.load_tokenizer(self.folder), self.plain.config.vocab_size)
            return
        self.heads[role] = models.Fp32Head(hidden, 1, bias=False)
        self.heads[role].weight.data.copy_(score)

    def _check_unembedding(self) -> None:
        """The engine reads logits at response positions only; that needs logits = unembedding(trunk)."""
        ids = torch.tensor([[0, 1, 2, 3]], device=self.device)
        with torch.no_grad(), models.autocast(self.dtype):
            expected = self.model(input_ids=ids).logits.float()
            found = self.unembed(self.hidden(input_ids=ids)).float()
        if not torch.allclose(expected, found, atol=1e-3, rtol=1e-2):
            raise UserError(f"{type(self.plain).__name__} changes its logits after the output layer; not supported")

    def trained(self) -> dict[str, torch.nn.Parameter]:
        """What the optimiser sees: the LoRA weights of the policy; those of the value function and its head."""
        found = {n: p for n, p in self.model.named_parameters() if ".policy." in n or ".value." in n}
        return {**found, "value_head": self.heads["value"].weight} if "value" in self.heads else found

    def use(self, adapter: str | None) -> None:
        """Switch to one adapter; None: the reference policy, all adapters off."""
        for layer in self.layers:
            layer.enable_adapters(adapter is not None)
            if adapter is not None:
                layer.set_adapter(adapter)
        for parameter, trained in self.requires_grad:  # PEFT's switches flip it
            parameter.requires_grad_(trained)

    def pack(self, prompts: list[list[int]], responses: list[list[int]], pad: int) -> Packed:
        """Token ids as one forward pass; neighbours with the same prompt share it."""
        return Packed.build(prompts, responses, pad, self.device, self.dtype, self.shared)

    def hidden(self, **inputs: torch.Tensor) -> torch.Tensor:
        """(G, T, H) last hidden states under the current adapter."""
        self.model.train(self.checkpointing and torch.is_grad_enabled())  # transformers checkpoints in train mode only
        return self.trunk(**inputs, use_cache=False).last_hidden_state

    def logprobs(self, adapter: str | None, batch: Packed, temperature: float) -> torch.Tensor:
        """(N, R) fp32 log-probabilities of the response tokens, 0 on padding; logits at those positions only."""
        self.use(adapter)
        with models.autocast(self.dtype):
            return log_likelihood(self.hidden(**batch.inputs()), self.unembed, batch, temperature)

    def values(self, batch: Packed) -> torch.Tensor:
        """(N, R) fp32 value of the state before each response token, 0 on padding."""
        return self._head_at("value", batch, batch.predicts) * batch.kept

    def scores(self, role: str, batch: Packed) -> torch.Tensor:
        """(N,) fp32 reward: the head's output at the last response token, EOS included; or the claim's likelihood."""
        if role in self.claims:
            claim = claim_part(batch.tokens, batch.kept, self.claims[role])
            return (self.logprobs(role, batch, 1.0) * claim).sum(1)
        return self._head_at(role, batch, batch.last())[:, 0]

    def _head_at(self, role: str, batch: Packed, columns: torch.Tensor) -> torch.Tensor:
        self.use(role)
        with models.autocast(self.dtype):
            hidden = self.hidden(**batch.inputs())
            return self.heads[role](hidden[batch.group, columns])[..., 0]


def _adapter_config(folder: Path) -> dict:
    """LoraConfig's fields from adapter_config.json, as a causal adapter."""
    try:
        saved = json.loads((folder / "adapter_config.json").read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no reward adapter (adapter_config.json)") from None
    return {
        "r": saved["r"],
        "lora_alpha": saved["lora_alpha"],
        "target_modules": saved["target_modules"],
        "task_type": "CAUSAL_LM",
    }
