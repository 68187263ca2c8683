"""Small random checkpoints in the layouts that the paper's models are published in: names, shapes, config, sharding."""

import json
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import save_file
from sentencepiece import sentencepiece_model_pb2

SENTENCES = [
    "Is this movie review positive or negative? The plot was thin, but the actors carried it.",
    "Which topic does the news belong to: world, sports, business or technology?",
    "Philosophy of sop and eop: 2024 was 12.5 times better; Aesop's fables aren't sold for $3.99.",
    "Do the two sentences mean the same?  Two  spaces here,\nand a new line there.",
    "电影 评论 是 正面 的 吗？ 这部 电影 很 好看。",
] * 4

SYMBOLS = [f"<mask_{i}>" for i in range(86)] + [f"<reserved_{i}>" for i in range(108)]  # Baichuan2's, from id 3 on


def sentencepiece_model(path: Path, symbols: list[str], dummy_prefix: bool, pieces: int | None = None) -> None:
    """Train a byte-fallback BPE model, with `symbols` from id 3 on, padded with unused pieces to `pieces`."""
    corpus = path.with_suffix(".txt")
    corpus.write_text("\n".join(SENTENCES), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(path.with_suffix("")),
        model_type="bpe",
        vocab_size=3 + len(symbols) + 256 + 200,
        user_defined_symbols=symbols,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=dummy_prefix,
        split_digits=True,
        minloglevel=2,
    )
    corpus.unlink()
    path.with_suffix(".vocab").unlink()
    if pieces is not None:
        proto = sentencepiece_model_pb2.ModelProto.FromString(path.read_bytes())
        for index in range(len(proto.pieces), pieces):
            proto.pieces.add(piece=f"⟨{index}⟩", score=-1e6, type=proto.pieces[0].UNUSED)
        path.write_bytes(proto.SerializeToString())


def weight(*shape: int) -> torch.Tensor:
    return torch.randn(shape) / shape[-1] ** 0.5


def norm(size: int) -> torch.Tensor:
    return 1 + 0.1 * torch.randn(size)


def write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value))


def write_bin(folder: Path, tensors: dict, count: int) -> None:
    """pytorch_model-0000i-of-0000n.bin and their index."""
    names, where = list(tensors), {}
    for index in range(count):
        shard = f"pytorch_model-{index + 1:05}-of-{count:05}.bin"
        part = {name: tensors[name] for name in names[index::count]}
        torch.save(part, folder / shard)
        where |= dict.fromkeys(part, shard)
    write_json(folder / "pytorch_model.bin.index.json", {"metadata": {}, "weight_map": where})


def write_safetensors(folder: Path, tensors: dict, count: int) -> None:
    names, where = list(tensors), {}
    for index in range(count):
        shard = f"model-{index + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name].contiguous() for name in names[index::count]}
        save_file(part, folder / shard, {"format": "pt"})
        where |= dict.fromkeys(part, shard)
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})


def baichuan2(folder: Path, alibi: bool) -> dict:
    """Baichuan2-7B-Chat (rotary) or -13B-Chat (ALiBi); returns the tensors under their published names."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    layers, heads = (2, 5) if alibi else (2, 4)  # 5 heads: like the 13B model's 40, no power of two
    hidden, inner = heads * 8, 48
    sentencepiece_model(folder / "tokenizer.model", SYMBOLS, dummy_prefix=False)
    vocab = 3 + len(SYMBOLS) + 256 + 200 + 5
    config = {
        "_from_model_config": True,
        "architectures": ["BaichuanForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_baichuan.BaichuanConfig",
            "AutoModelForCausalLM": "modeling_baichuan.BaichuanForCausalLM",
        },
        "tokenizer_class": "BaichuanTokenizer",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": inner,
        "model_max_length": 4096,
        "model_type": "baichuan",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": vocab,
    } | ({} if alibi else {"max_position_embeddings": 4096})
    tensors = {"model.embed_tokens.weight": weight(vocab, hidden) * hidden**0.5}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        tensors |= {
            prefix + "self_attn.W_pack.weight": 2 * weight(3 * hidden, hidden),
            prefix + "self_attn.o_proj.weight": weight(hidden, hidden),
            prefix + "mlp.gate_proj.weight": weight(inner, hidden),
            prefix + "mlp.down_proj.weight": weight(hidden, inner),
            prefix + "mlp.up_proj.weight": weight(inner, hidden),
            prefix + "input_layernorm.weight": norm(hidden),
            prefix + "post_attention_layernorm.weight": norm(hidden),
        }
        if not alibi:
            tensors[prefix + "self_attn.rotary_emb.inv_freq"] = 10000 ** (-torch.arange(0, 8, 2) / 8)
    tensors |= {"model.norm.weight": norm(hidden), "lm_head.weight": 3 * weight(vocab, hidden)}
    write_json(folder / "config.json", config)
    token = {"__type": "AddedToken", "lstrip": False, "normalized": True, "rstrip": False, "single_word": True}
    write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "auto_map": {"AutoTokenizer": ["tokenization_baichuan.BaichuanTokenizer", None]},
            "bos_token": token | {"content": "<s>"},
            "eos_token": token | {"content": "</s>"},
            "pad_token": token | {"content": "<unk>"},
            "unk_token": token | {"content": "<unk>"},
            "tokenizer_class": "BaichuanTokenizer",
        },
    )
    write_bin(folder, tensors, 3)
    return tensors


def chatglm3(folder: Path) -> dict:
    """ChatGLM3-6B; returns the tensors under their published names."""
    torch.manual_seed(0)
    folder.mkdir(parents=True)
    sentencepiece_model(folder / "tokenizer.model", [], dummy_prefix=True, pieces=64789)
    layers, heads, groups, head, inner, vocab = 2, 4, 2, 8, 40, 65024
    hidden, fused = heads * head, (heads + 2 * groups) * head
    config = {
        "architectures": ["ChatGLMModel"],
        "model_type": "chatglm",
        "auto_map": {"AutoModelForCausalLM": "modeling_chatglm.ChatGLMForConditionalGeneration"},
        "add_bias_linear": False,
        "add_qkv_bias": True,
        "apply_query_key_layer_scaling": True,
        "apply_residual_connection_post_layernorm": False,
        "attention_dropout": 0.0,
        "attention_softmax_in_fp32": True,
        "bias_dropout_fusion": True,
        "ffn_hidden_size": inner,
        "fp32_residual_connection": False,
        "hidden_dropout": 0.0,
        "hidden_size": hidden,
        "kv_channels": head,
        "layernorm_epsilon": 1e-05,
        "multi_query_attention": True,
        "multi_query_group_num": groups,
        "num_attention_heads": heads,
        "num_layers": layers,
        "original_rope": True,
        "padded_vocab_size": vocab,
        "post_layer_norm": True,
        "rmsnorm": True,
        "seq_length": 8192,
        "use_cache": True,
        "torch_dtype": "float16",
        "tie_word_embeddings": False,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    tensors = {
        "transformer.embedding.word_embeddings.weight": torch.randn(vocab, hidden),
        "transformer.rotary_pos_emb.inv_freq": 10000 ** (-torch.arange(0, head // 2, 2) / (head // 2)),
    }
    for i in range(layers):
        prefix = f"transformer.encoder.layers.{i}."
        tensors |= {
            prefix + "input_layernorm.weight": norm(hidden),
            prefix + "self_attention.query_key_value.weight": 2 * weight(fused, hidden),
            prefix + "self_attention.query_key_value.bias": torch.randn(fused),
            prefix + "self_attention.dense.weight": weight(hidden, hidden),
            prefix + "post_attention_layernorm.weight": norm(hidden),
            prefix + "mlp.dense_h_to_4h.weight": weight(2 * inner, hidden),
            prefix + "mlp.dense_4h_to_h.weight": weight(hidden, inner),
        }
    tensors |= {
        "transformer.encoder.final_layernorm.weight": norm(hidden),
        "transformer.output_layer.weight": weight(vocab, hidden),
    }
    write_json(folder / "config.json", config)
    write_json(
        folder / "tokenizer_config.json",
        {
            "auto_map": {"AutoTokenizer": ["tokenization_chatglm.ChatGLMTokenizer", None]},
            "name_or_path": "THUDM/chatglm3-6b",
            "remove_space": False,
            "do_lower_case": False,
            "tokenizer_class": "ChatGLMTokenizer",
        },
    )
    write_safetensors(folder, tensors, 2)
    return tensors
