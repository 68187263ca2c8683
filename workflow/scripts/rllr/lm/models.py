"""Loading: tokenizer, backbone in the machine's precision, LoRA, reward heads."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rllr import gpus
from rllr.base import register
from rllr.cli import UserError, log

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        PreTrainedModel,
        PreTrainedTokenizerBase,
    )

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def device() -> torch.device:
    return torch.device("cuda" if gpus.usable() else "cpu")


def dtype_of(precision: str) -> torch.dtype:
    """The backbone's dtype. `auto`: bf16 where the device computes in it, else fp32. fp16 needs a GPU."""
    on_gpu = device().type == "cuda"
    if precision == "auto":
        on_cpu = torch.ops.mkldnn._is_mkldnn_bf16_supported
        native = torch.cuda.is_bf16_supported(including_emulation=False) if on_gpu else on_cpu()
        return torch.bfloat16 if native else torch.float32
    if precision == "fp16" and not on_gpu:
        log("precision fp16 needs a GPU; using bf16 on this CPU")
        return torch.bfloat16
    return DTYPES[precision]


def autocast(dtype: torch.dtype) -> torch.autocast:
    """Casts LoRA's fp32 weights down to the backbone's dtype at use; does nothing in fp32."""
    return torch.autocast(device().type, dtype=dtype, enabled=dtype != torch.float32)


def check_weights(folder: Path | str) -> None:
    """Raise UserError unless `folder` holds a Hugging Face model with weights."""
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder}: not a model folder (no config.json)")
    if not any(path.is_file() for path in folder.glob("*.safetensors")):  # a link may lead nowhere
        raise UserError(f"{folder}: no weights; expected model.safetensors or its shards")


def load_tokenizer(folder: Path | str) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    check_weights(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        raise UserError(f"{folder}: the pad token must be set and differ from EOS, found {tokenizer.pad_token!r}")
    return tokenizer


def attention_for(attention: str, dtype: torch.dtype, training: bool) -> str:
    """The attention implementation of passes with gradients (`training`) or without; `auto`: transformers' choice.

    With gradients `auto` is eager in bf16 on a CPU, where PyTorch's sdpa takes up to 1.4 times as long over a step
    (benchmarks/shared.py); in fp32 sdpa is the faster one.
    """
    slow = training and dtype == torch.bfloat16 and device().type == "cpu"
    return "eager" if attention == "auto" and slow else attention


def change_attention_with_gradients(model: "PreTrainedModel", with_gradients: str) -> None:
    """Attend by one implementation in passes with gradients, by that of the model now in those without.

    A rollout with sdpa takes three quarters of its time with eager attention (16 rows, SmolLM2-135M, bf16, one core).
    """
    without = model.config._attn_implementation

    def choose(*_: Any) -> None:
        wanted = with_gradients if torch.is_grad_enabled() else without
        if model.config._attn_implementation != wanted:  # setting it goes through all modules
            model.set_attn_implementation(wanted)

    getattr(model, model.base_model_prefix).register_forward_pre_hook(choose)


def choose_kernels() -> None:
    """Call a CPU's vector functions once on one number.

    MKL chooses a function's kernel at its first call. Where several threads make it at once, one of them can get a
    kernel of low accuracy for its share of the numbers (pytorch issue 188792), and the first batch differs from run to
    run by way of the rotary embedding's cosines.
    """
    for one in (torch.ones(1), torch.ones(1, dtype=torch.float64)):
        for function in (torch.cos, torch.sin, torch.exp, torch.log, torch.sqrt, torch.tanh, torch.erf):
            function(one)


def load(
    auto_class: "type[AutoModelForCausalLM | AutoModelForSequenceClassification]",
    folder: Path | str,
    dtype: torch.dtype,
    attention: str,
    training: bool,
    **extra: Any,
) -> "PreTrainedModel":
    """`from_pretrained` on a local folder with a chosen attention implementation.

    Args:
        training: some passes are made with gradients.

    Raises:
        UserError: no model there, or the attention implementation is missing on this machine or in this model.
    """
    check_weights(folder)
    register()
    choose_kernels()
    # With a mask, cuDNN's backward pass gives NaN at some lengths (pytorch issue 196678), and it plans anew per shape.
    torch.backends.cuda.enable_cudnn_sdp(False)
    chosen = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        model = auto_class.from_pretrained(folder, dtype=dtype, **chosen, **extra)
    except (ImportError, ValueError) as error:
        if not chosen:
            raise
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"attention: {attention} cannot be had for {folder}: {reason}; use auto") from None
    with_gradients = attention_for(attention, dtype, training)
    if with_gradients != attention:
        change_attention_with_gradients(model, with_gradients)
    return model


def load_causal(
    folder: Path | str, dtype: torch.dtype, attention: str = "auto", training: bool = False
) -> "PreTrainedModel":
    """The frozen causal language model on the device, in `dtype`."""
    from transformers import AutoModelForCausalLM

    model = load(AutoModelForCausalLM, folder, dtype, attention, training).to(device())
    return model.requires_grad_(False).eval()


class Fp32Head(torch.nn.Linear):
    """A linear score head that computes in fp32 whatever autocast says; (..., H) -> (..., 1)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return torch.nn.functional.linear(hidden.float(), self.weight.float())


def load_scorer(
    folder: Path | str, dtype: torch.dtype, attention: str = "auto", training: bool = False
) -> "PreTrainedModel":
    """The backbone with a one-output score head (`model.score`, fp32), in PEFT's SEQ_CLS layout."""
    from transformers import AutoModelForSequenceClassification
    from transformers.utils import logging

    logging.set_verbosity_error()  # the report of a new head and an unused language-model head: both expected
    model = load(AutoModelForSequenceClassification, folder, dtype, attention, training, num_labels=1)
    logging.set_verbosity_warning()
    model.score = Fp32Head(model.score.in_features, 1, bias=False)
    # Scores start near unit variance (Stiennon et al. 2020, appendix).
    torch.nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    return model


def lora_config(lora: dict, task_type: str) -> "LoraConfig":
    from peft import LoraConfig

    return LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"],
        lora_dropout=lora["dropout"],
        target_modules=list(lora["target_modules"]),
        task_type=task_type,
        modules_to_save=["score"] if task_type == "SEQ_CLS" else None,
    )


def without_peft(model: "PreTrainedModel | PeftModel") -> "PreTrainedModel":
    """The transformers model inside PEFT's wrapper, or the model itself where there is none."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def cast_weights_not_activations(model: torch.nn.Module) -> None:
    """Keep PEFT from casting every activation up to LoRA's fp32; under `autocast` the small weights go down instead.

    Up to 40% of a forward pass on a CPU. Without autocast (fp32) both dtypes are the same and nothing changes.
    """
    from peft.tuners.lora import LoraLayer

    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.cast_input_dtype_enabled = False


def sdpa_in_fp32(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """transformers' sdpa attention computed in fp32: (B, heads, T, D) in, (B, T, heads, D) in the values' dtype out."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    with torch.autocast(query.device.type, enabled=False):
        if attention_mask is not None and attention_mask.is_floating_point():
            attention_mask = attention_mask.float()
        output, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return output.to(value.dtype), None


def keep_stream_in_fp32(model: "PreTrainedModel") -> None:
    """Keep a bf16 model's residual stream and attention in fp32: a row's answer then hardly depends on its neighbours.

    On a CPU PyTorch's kernels add up in another order for another number of rows and for padding. In bf16 the
    differences grow from layer to layer; this halves them, and the distance to fp32, at no cost in time. Call the
    model under `autocast`, which takes the input of each linear layer down.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("sdpa_in_fp32", sdpa_in_fp32)
    AttentionMaskInterface.register("sdpa_in_fp32", sdpa_mask)
    model.set_attn_implementation("sdpa_in_fp32")
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output.float())


def load_adapter(
    folder: Path | str, adapter: Path | str | None, dtype: torch.dtype, attention: str = "auto"
) -> "PreTrainedModel | PeftModel":
    """A causal model with a trained adapter, for generation.

    In fp32 it is merged into the weights; in 16 bits it stays beside them, which would round small updates away.
    """
    from peft import PeftModel

    model = load_causal(folder, dtype, attention)
    chosen = attention == "auto" and model.config._attn_implementation == "sdpa"
    if chosen and dtype == torch.bfloat16 and model.device.type == "cpu":
        keep_stream_in_fp32(model)
    if adapter is None:
        return model
    if dtype == torch.float32:
        return PeftModel.from_pretrained(model, adapter).merge_and_unload().eval()
    model = PeftModel.from_pretrained(model, adapter)
    cast_weights_not_activations(model)
    return model.eval()


def describe(model: "PreTrainedModel | PeftModel", dtype: torch.dtype) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    log(
        f"model: {model.config.model_type}, {total / 1e6:.1f}M parameters, {trained / 1e6:.2f}M trained, "
        f"{str(dtype).removeprefix('torch.')} on {device()}, {torch.get_num_threads()} threads"
    )
