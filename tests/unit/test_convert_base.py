"""Converted Baichuan2 and ChatGLM3 against plain float64 forwards written from the architectures' descriptions."""

import json
import math
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import published_layouts
from published_layouts import SENTENCES
from rllr.base import convert, finish, published, register, shards, tokenizer
from rllr.cli import UserError
from rllr.lm.tokens import Encoder

TEMPLATES = Path(__file__).parents[2] / "config" / "templates"
FAMILIES = ["baichuan2", "baichuan2-13b", "chatglm3"]


def publish(family: str, folder: Path) -> dict:
    if family == "chatglm3":
        return published_layouts.chatglm3(folder)
    return published_layouts.baichuan2(folder, alibi=family == "baichuan2-13b")


@pytest.fixture(scope="module", params=FAMILIES)
def converted(request, tmp_path_factory):
    """(family, published tensors, published folder, base folder)"""
    family = request.param
    folder = tmp_path_factory.mktemp(family)
    tensors = publish(family, folder / "published")
    base = folder / "base"
    base.mkdir()
    register()
    published.link_or_convert(folder / "published", family, base)
    finish.finish(base, None, (TEMPLATES / f"{family.removesuffix('-13b')}.jinja").read_text())
    return family, tensors, folder / "published", base


@pytest.fixture(scope="module")
def model(converted):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(converted[3]).eval()


# --- The references: one sequence at a time, float64, no library code but torch's arithmetic --------------------


def rms(x, weight, eps):
    return weight * x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt()


def silu(x):
    return x / (1 + (-x).exp())


def attend(q, k, v, bias):
    """(T, heads, d) each; `bias` (heads, T, T) is added to the scores, and the future is hidden."""
    length, _, d = q.shape
    scores = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(d) + bias
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -math.inf)
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).reshape(length, -1)


def angles(length, dim):
    return torch.arange(length).double()[:, None] * 10000.0 ** (-torch.arange(0, dim, 2).double() / dim)


def rotate_halves(x):
    """Llama's rotary: dimension i turns with dimension i + d/2."""
    angle = angles(x.shape[0], x.shape[2])[:, None]
    a, b = x.chunk(2, -1)
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)


def rotate_pairs(x):
    """ChatGLM's rotary: in the first half of the head dimensions 2i turns with 2i + 1, the second half stays."""
    turning, staying = x.chunk(2, -1)
    angle = angles(x.shape[0], turning.shape[2])[:, None]
    a, b = turning[..., 0::2], turning[..., 1::2]
    turned = torch.stack([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1).flatten(-2)
    return torch.cat([turned, staying], -1)


def alibi(heads, length):
    """ALiBi as Baichuan2-13B computes it: each head's slope times the key's position."""

    def power_of_two(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    closest = 2 ** math.floor(math.log2(heads))
    slopes = power_of_two(closest) + power_of_two(2 * closest)[0::2][: heads - closest]
    return torch.tensor(slopes).double()[:, None, None] * torch.arange(length).double()


def baichuan2_logits(w, ids, heads, rotary):
    w = {name: tensor.double() for name, tensor in w.items()}
    x = w["model.embed_tokens.weight"][ids]
    for i in range(2):
        p = f"model.layers.{i}."
        h = rms(x, w[p + "input_layernorm.weight"], 1e-6)
        q, k, v = (h @ w[p + "self_attn.W_pack.weight"].T).view(len(ids), 3, heads, -1).unbind(1)
        if rotary:
            q, k, bias = rotate_halves(q), rotate_halves(k), 0
        else:
            bias = alibi(heads, len(ids))
        x = x + attend(q, k, v, bias) @ w[p + "self_attn.o_proj.weight"].T
        h = rms(x, w[p + "post_attention_layernorm.weight"], 1e-6)
        gated = silu(h @ w[p + "mlp.gate_proj.weight"].T) * (h @ w[p + "mlp.up_proj.weight"].T)
        x = x + gated @ w[p + "mlp.down_proj.weight"].T
    head = w["lm_head.weight"]
    return rms(x, w["model.norm.weight"], 1e-6) @ (head / head.norm(dim=1, keepdim=True)).T


def chatglm3_logits(w, ids):
    w = {name: tensor.double() for name, tensor in w.items()}
    heads, groups, d = 4, 2, 8
    x = w["transformer.embedding.word_embeddings.weight"][ids]
    for i in range(2):
        p = f"transformer.encoder.layers.{i}."
        h = rms(x, w[p + "input_layernorm.weight"], 1e-5)
        fused = h @ w[p + "self_attention.query_key_value.weight"].T + w[p + "self_attention.query_key_value.bias"]
        q, k, v = fused.split([heads * d, groups * d, groups * d], -1)
        q = rotate_pairs(q.view(-1, heads, d))
        k = rotate_pairs(k.view(-1, groups, d)).repeat_interleave(heads // groups, 1)
        v = v.view(-1, groups, d).repeat_interleave(heads // groups, 1)
        x = x + attend(q, k, v, 0) @ w[p + "self_attention.dense.weight"].T
        h = rms(x, w[p + "post_attention_layernorm.weight"], 1e-5)
        gate, up = (h @ w[p + "mlp.dense_h_to_4h.weight"].T).chunk(2, -1)
        x = x + (silu(gate) * up) @ w[p + "mlp.dense_4h_to_h.weight"].T
    return rms(x, w["transformer.encoder.final_layernorm.weight"], 1e-5) @ w["transformer.output_layer.weight"].T


def reference(family, tensors, ids):
    if family == "chatglm3":
        return chatglm3_logits(tensors, ids).float()
    alibi = family == "baichuan2-13b"
    return baichuan2_logits(tensors, ids, heads=5 if alibi else 4, rotary=not alibi).float()


IDS = torch.tensor([5, 17, 300, 42, 7, 7, 256, 400, 11, 301, 99, 3])


# --- The forwards -------------------------------------------------------------------------------------------------


def test_full_sequence(converted, model):
    family, tensors, *_ = converted
    with torch.no_grad():
        torch.testing.assert_close(model(IDS[None]).logits[0], reference(family, tensors, IDS), atol=1e-4, rtol=1e-4)


def test_left_padding(converted, model):
    family, tensors, *_ = converted
    short = IDS[:7]
    batch = torch.stack([IDS, torch.cat([torch.zeros(5, dtype=torch.long), short])])
    mask = torch.tensor([[1] * 12, [0] * 5 + [1] * 7])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(batch, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(logits[0], reference(family, tensors, IDS), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits[1, 5:], reference(family, tensors, short), atol=1e-4, rtol=1e-4)
    assert logits.isfinite().all()


def test_token_by_token_through_the_cache(converted, model):
    family, tensors, *_ = converted
    cache, rows = None, []
    with torch.no_grad():
        for token in IDS:
            out = model(token[None, None], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            rows.append(out.logits[0, 0])
    torch.testing.assert_close(torch.stack(rows), reference(family, tensors, IDS), atol=1e-4, rtol=1e-4)


def test_generate_left_padded(converted, model):
    family, tensors, *_ = converted
    prompts = [IDS[:8], IDS[2:5]]
    batch = torch.stack([torch.cat([torch.zeros(8 - len(p), dtype=torch.long), p]) for p in prompts])
    mask = torch.stack([torch.cat([torch.zeros(8 - len(p)), torch.ones(len(p))]).long() for p in prompts])
    out = model.generate(batch, attention_mask=mask, max_new_tokens=5, min_new_tokens=5, do_sample=False)
    for row, prompt in zip(out, prompts, strict=True):
        ids = prompt
        for _ in range(5):
            logits = reference(family, tensors, ids)[-1]
            logits[2] = -math.inf  # min_new_tokens holds EOS back
            ids = torch.cat([ids, logits.argmax()[None]])
        assert row[8:].tolist() == ids[len(prompt) :].tolist()


def test_lora_gradient_checkpointing_and_merge(converted, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    base = converted[3]
    lora = LoraConfig(r=4, target_modules=["q_proj", "k_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.0)
    torch.manual_seed(0)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), lora)
    model.train()
    plain = torch.autograd.grad(
        model(IDS[None], labels=IDS[None]).loss, [p for p in model.parameters() if p.requires_grad]
    )
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model(IDS[None], labels=IDS[None]).loss.backward()
    for expected, parameter in zip(plain, [p for p in model.parameters() if p.requires_grad], strict=True):
        torch.testing.assert_close(parameter.grad, expected)
        assert expected.abs().max() > 0
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        logits = model(IDS[None]).logits
        merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter")
        merged.merge_and_unload().save_pretrained(tmp_path / "merged")
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
        torch.testing.assert_close(again(IDS[None]).logits, logits, atol=1e-4, rtol=1e-4)


def test_sequence_classification_reads_the_last_token(converted):
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(converted[3], num_labels=1).eval()
    padded = torch.cat([torch.zeros(3, dtype=torch.long), IDS])
    mask = (padded != 0).long()
    with torch.no_grad():
        score = model(IDS[None]).logits
        positions = (mask.cumsum(0) - 1).clamp(min=0)
        same = model(padded[None], attention_mask=mask[None], position_ids=positions[None]).logits
    torch.testing.assert_close(score, same, atol=1e-5, rtol=1e-5)


# --- The checkpoint -----------------------------------------------------------------------------------------------


def test_check_accepts_it(converted):
    family, tensors, _, base = converted
    facts = finish.check(base)
    learnt = sum(tensor.numel() for name, tensor in tensors.items() if "inv_freq" not in name)
    assert facts["parameters"] == learnt
    names = {"baichuan2": "LlamaForCausalLM", "baichuan2-13b": "Baichuan13BForCausalLM", "chatglm3": "GlmForCausalLM"}
    assert facts == {"architecture": names[family], "parameters": learnt, "dtype": "float32"}


@pytest.mark.parametrize("family", ["baichuan2", "baichuan2-13b"])
def test_what_is_wrong_with_the_weights_is_named(family, tmp_path):
    tensors = publish(family, tmp_path / "published")
    source = tmp_path / "published"
    layer = "model.layers.1.self_attn.o_proj.weight"
    cases = [
        ({layer: None}, f"1 tensors are missing, for example {layer}"),
        ({"model.layers.1.self_attn.q_proj.weight": torch.ones(2)}, "q_proj.weight: left over"),
        ({"model.layers.7.self_attn.o_proj.weight": tensors[layer]}, r"layers.7.*left over"),
        ({layer: torch.ones(3, 3)}, r"o_proj.weight: shape \(3, 3\), expected"),
        ({"model.layers.0.self_attn.W_pack.weight": torch.ones(9, 8)}, "W_pack.weight: 9 rows, expected"),
    ]
    for number, (change, message) in enumerate(cases):
        changed = {name: tensor for name, tensor in (tensors | change).items() if tensor is not None}
        published_layouts.write_bin(source, changed, 3)
        out = tmp_path / f"out{number}"
        out.mkdir()
        with pytest.raises(UserError, match=message):
            convert.convert(convert.FAMILIES[family], source, out)


def test_another_kind_of_model_is_refused(tmp_path):
    publish("baichuan2", tmp_path / "7b")
    publish("baichuan2-13b", tmp_path / "13b")
    for source, family, message in [
        ("7b", "baichuan2-13b", "set convert: baichuan2"),
        ("13b", "baichuan2", "set convert: baichuan2-13b"),
        ("7b", "chatglm3", "model_type is 'baichuan', expected 'chatglm'"),
        ("7b", None, "set base.convert to baichuan2 or baichuan2-13b"),
    ]:
        with pytest.raises(UserError, match=message):
            published.link_or_convert(tmp_path / source, family, tmp_path)


def test_memory_holds_one_output_shard(tmp_path, monkeypatch):
    """However large the published shards are: full output shards are written at once."""
    tensors = publish("baichuan2", tmp_path / "published")
    monkeypatch.setattr(shards, "SHARD", 20_000)
    shards.rewrite(shards.find(tmp_path / "published"), tmp_path, lambda name, tensor: {name: tensor})
    written = shards.find(tmp_path)
    largest = max(tensor.nbytes for tensor in tensors.values())
    assert len(written) > 3 and max(path.stat().st_size for path in written) < 20_000 + largest + 5_000
    found = {name: tensor for path in written for name, tensor in shards.tensors(path)}
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_pickles_with_code_are_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ("code ran",)

    torch.save({"weight": Attack()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match="could run code and are never loaded"):
        list(shards.tensors(tmp_path / "pytorch_model.bin"))


def test_damaged_shards_are_named(tmp_path):
    for name in ("pytorch_model.bin", "model.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint at all")
        with pytest.raises(UserError, match=f"{name}: "):
            list(shards.tensors(tmp_path / name))


# --- The tokenizer ------------------------------------------------------------------------------------------------


def test_text_is_segmented_as_sentencepiece_does(converted):
    import sentencepiece
    from transformers import AutoTokenizer

    _, _, source, base = converted
    fast = AutoTokenizer.from_pretrained(base)
    slow = sentencepiece.SentencePieceProcessor(model_file=str(source / "tokenizer.model"))
    odd = [" leading", "trailing ", "a\n\nb", "1234567", "emoji 🙂 é 漢字", "\n", "sophisticated philosophy", "[x] <y>"]
    for text in [*SENTENCES, *odd]:
        text = text.replace(" sop ", " soap ")  # the one word that ChatGLM3's special token takes from the text
        ids = fast(text, add_special_tokens=False)["input_ids"]
        assert ids == slow.encode(text), text
        assert fast.decode(ids) == slow.decode(ids), text


WORDS = st.sampled_from(sorted({word for text in SENTENCES for word in text.split()}))
TEXTS = st.one_of(
    st.text(st.sampled_from(sorted(set("".join(SENTENCES))))),
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(WORDS).map(" ".join),
    st.tuples(st.sampled_from(" aeo.=\n"), st.integers(1, 12)).map(lambda run: run[0] * run[1]),
)


@pytest.mark.parametrize("order", ["shuffled", "starting anew"])
@pytest.mark.parametrize("family", ["llama", "baichuan2", "chatglm3"])
def test_pieces_are_ranked_by_score(tmp_path, family, order):
    """Not by id: in Baichuan2's model a second block of pieces starts again at the highest scores."""
    import sentencepiece
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    symbols, path = (published_layouts.SYMBOLS if family == "baichuan2" else []), tmp_path / "tokenizer.model"
    published_layouts.sentencepiece_model(path, symbols, family != "baichuan2", 64789 if family == "chatglm3" else None)
    proto = ModelProto.FromString(path.read_bytes())
    normal = [piece for piece in proto.pieces if piece.type == piece.NORMAL]
    scores = [piece.score for piece in normal]
    if order == "shuffled":
        random.Random(0).shuffle(scores)
    else:
        scores = scores[: len(scores) // 2] * 2
    for piece, score in zip(normal, scores):
        piece.score = score
    path.write_bytes(proto.SerializeToString())
    markers, added = {}, ()
    if family != "llama":
        markers, added = convert.FAMILIES[family].markers, convert.FAMILIES[family].added
    fast = tokenizer.from_sentencepiece(path, {}, markers, added)
    slow = sentencepiece.SentencePieceProcessor(model_file=str(path))

    def check(text):
        for token in sorted(fast.get_added_vocab(), key=len, reverse=True):
            text = text.replace(token, " ")  # control tokens in plain text: see test_templates
        ids = fast(text, add_special_tokens=False)["input_ids"]
        assert ids == slow.encode(text)
        assert fast.decode(ids) == slow.decode(ids)

    readme = TEMPLATES.parents[1] / "README.md"
    for text in [*SENTENCES, *readme.read_text(encoding="utf-8").splitlines()]:
        check(text)
    settings(max_examples=300, deadline=None)(given(TEXTS)(check))()


def test_a_unigram_model_makes_no_control_token_of_text(tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join([*SENTENCES, "a < b > c / d 0 x 4 1", "</ s> <u nk> <0 x41>"]), encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus), model_prefix=str(tmp_path / "t"), model_type="unigram", vocab_size=350, byte_fallback=True,
        normalization_rule_name="identity", remove_extra_whitespaces=False, minloglevel=2,
    )  # fmt: skip
    slow = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    encoder = Encoder(tokenizer.from_sentencepiece(tmp_path / "t.model", {}), 99)
    for text in [*SENTENCES, "</s>", "a<s>b</s> <unk>", "<0x41>"]:
        assert encoder.ids(text) == slow.encode(text)


def test_special_tokens(converted):
    from transformers import AutoTokenizer

    family, *_, base = converted
    fast = AutoTokenizer.from_pretrained(base)
    assert (fast.bos_token_id, fast.eos_token_id, fast.pad_token_id) == (1, 2, 0)
    for marker, index in convert.FAMILIES[family].markers.items():
        assert fast(marker, add_special_tokens=False)["input_ids"] == [index]
        assert fast.decode([index], skip_special_tokens=True) == ""
    stops = json.loads((base / "generation_config.json").read_text())["eos_token_id"]
    assert stops == ([2, 64795, 64797] if family == "chatglm3" else 2)
    if family == "chatglm3":
        assert fast.convert_ids_to_tokens([64789, 64791, 64793, 64797]) == [
            "[MASK]",
            "[sMASK]",
            "eop",
            "<|observation|>",
        ]


def test_a_marker_with_another_id_is_refused(tmp_path):
    published_layouts.sentencepiece_model(tmp_path / "tokenizer.model", ["<reserved_106>"], dummy_prefix=False)
    with pytest.raises(UserError, match="<reserved_106> has id 3, published: 195"):
        tokenizer.from_sentencepiece(tmp_path / "tokenizer.model", {}, convert.BAICHUAN2_MARKERS)
