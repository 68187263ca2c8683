"""Chat templates turn by turn against the published engine's, which encodes a template piece by piece."""

import json
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import published_layouts
from published_layouts import SENTENCES
from rllr.cli import UserError
from rllr.lm.tokens import PLAIN, Encoder

TEMPLATES = Path(__file__).parents[2] / "config" / "templates"

LLAMA2_SYSTEM = (
    "You are a helpful, respectful and honest assistant. Always answer as helpfully as possible, while being safe.  "
    "Your answers should not include any harmful, unethical, racist, sexist, toxic, dangerous, or illegal content. "
    "Please ensure that your responses are socially unbiased and positive in nature.\n\n"
    "If a question does not make any sense, or is not factually coherent, explain why instead of answering something "
    "not correct. If you don't know the answer to a question, please don't share false information."
)
DEFAULT_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
CHATGLM3_SYSTEM = (
    "You are ChatGLM3, a large language model trained by Zhipu.AI. "
    "Follow the user's instructions carefully. Respond using markdown."
)

# Per template: the pieces before the first query, before a later one, around each query, and after each answer. A tuple
# is a special token, a string is text that is tokenised on its own; `{}` is the query.
BOS, EOS, IM_END = ("<s>",), ("</s>",), ("<|im_end|>",)
PUBLISHED = {
    "llama2": ([BOS], [BOS], ["[INST] {} [/INST] "], [EOS]),
    "mistral": ([BOS], [BOS], ["[INST] {} [/INST]"], [EOS]),
    "default": ([BOS, DEFAULT_SYSTEM, "\n"], ["\n", BOS], ["Human: {}\nAssistant: "], [EOS]),
    "baichuan2": ([], [], [("<reserved_106>",), "{}", ("<reserved_107>",)], []),
    "chatglm3": (
        [("[gMASK]",), ("sop",), ("<|system|>",), "\n", CHATGLM3_SYSTEM],
        [],
        [("<|user|>",), "\n", "{}", ("<|assistant|>",), "\n"],
        [],
    ),
    "smollm2": ([], ["\n"], [("<|im_start|>",), "user\n{}", IM_END, "\n", ("<|im_start|>",), "assistant\n"], [IM_END]),
}


def published_pieces(template: str, turns: list[tuple[str, str | None]]) -> list:
    first, later, around, end = PUBLISHED[template]
    pieces = []
    for number, (query, answer) in enumerate(turns):
        if template == "llama2" and number == 0:
            query = f"<<SYS>>\n{LLAMA2_SYSTEM}\n<</SYS>>\n\n{query}"
        pieces += first if number == 0 else later
        pieces += [piece if isinstance(piece, tuple) else piece.replace("{}", query) for piece in around]
        if answer is not None:
            pieces += [answer, *end]
    return pieces


def bloom():
    """A tokenizer of BLOOM's kind: byte-level, with its pattern, which leaves punctuation and newline together."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    words = pre_tokenizers.Split(Regex(r" ?[^(\s|[.,!?…。，、।۔،])]+"), "isolated")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [words, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<unk>", "<s>", "</s>", "<pad>"]
    tokenizer.train_from_iterator(
        [*SENTENCES, *["It ends.\nIt goes on."] * 9],
        trainers.BpeTrainer(vocab_size=512, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    names = dict(zip(("unk_token", "bos_token", "eos_token", "pad_token"), special))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Per template, a tokenizer of the kind that its models have."""
    from rllr.base import convert, scratch, tokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    published_layouts.sentencepiece_model(folder / "llama.model", [], dummy_prefix=True)
    published_layouts.sentencepiece_model(folder / "baichuan.model", published_layouts.SYMBOLS, dummy_prefix=False)
    published_layouts.sentencepiece_model(folder / "chatglm.model", [], dummy_prefix=True, pieces=64789)
    llama = tokenizer.from_sentencepiece(folder / "llama.model", {})
    found = {
        "llama2": llama,
        "mistral": llama,
        "default": bloom(),
        "smollm2": scratch.train_tokenizer(iter(SENTENCES), 512),
        "baichuan2": tokenizer.from_sentencepiece(folder / "baichuan.model", {}, convert.BAICHUAN2_MARKERS),
        "chatglm3": tokenizer.from_sentencepiece(
            folder / "chatglm.model", {}, convert.CHATGLM3_MARKERS, convert.CHATGLM3_ADDED
        ),
    }
    assert set(found) == {path.stem for path in TEMPLATES.glob("*.jinja")}
    return found


def render(tokenizer, template: str, turns: list[tuple[str, str | None]]) -> str:
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text().removesuffix("\n")
    messages = []
    for query, answer in turns:
        messages.append({"role": "user", "content": query})
        messages += [{"role": "assistant", "content": answer}] if answer is not None else []
    return tokenizer.apply_chat_template(messages, add_generation_prompt=turns[-1][1] is None, tokenize=False)


def encoder_of(tokenizers, template: str) -> Encoder:
    tokenizer = tokenizers[template]
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text().removesuffix("\n")
    return Encoder(tokenizer, 10**6)


def published_ids(tokenizer, template: str, turns: list[tuple[str, str | None]], text_ids=None) -> list[int]:
    """Ids of the published engine: each piece on its own. `text_ids` encodes texts that stand in no control token."""
    text_ids = text_ids or (lambda text: tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = []
    for piece in published_pieces(template, turns):
        ids += [tokenizer.convert_tokens_to_ids(piece[0])] if isinstance(piece, tuple) else text_ids(piece)
    return ids


def row_of(turns: list[tuple[str, str | None]]) -> dict:
    return {"id": "r", "instruction": turns[-1][0], "input": "", "history": [list(turn) for turn in turns[:-1]]}


@pytest.mark.parametrize("template", PUBLISHED)
@pytest.mark.parametrize("query", [SENTENCES[0], "Two lines,\nof which the second ends in a space "])
def test_a_prompt_has_the_published_ids(tokenizers, template, query):
    encoder = encoder_of(tokenizers, template)
    expected = published_ids(encoder.tokenizer, template, [(query, None)])
    assert encoder.prompt(row_of([(query, None)]), 0) == expected
    whole = encoder.tokenizer(render(encoder.tokenizer, template, [(query, None)]), add_special_tokens=False)
    # What transformers alone makes of the template is the same but for BLOOM, which joins a full stop and a newline.
    assert (whole["input_ids"] == expected) == (template != "default")


@pytest.mark.parametrize("template", PUBLISHED)
@pytest.mark.parametrize("again", [0, 1, 2])
def test_a_history_has_the_published_ids_and_labels(tokenizers, template, again):
    """Answers keep the tokens that they have as responses, and each is trained with the EOS after it."""
    turns = [("First?", " It is.\nLabel: positive"), ("Second?", "Answer "), ("Third?", None)][2 - again :]
    encoder = encoder_of(tokenizers, template)
    eos = encoder.tokenizer.eos_token_id
    ids, labels = encoder.dialogue(row_of(turns), 0)
    assert ids == published_ids(encoder.tokenizer, template, turns) == encoder.prompt(row_of(turns), 0)
    expected = []
    for done in range(len(turns)):
        opened = len(published_ids(encoder.tokenizer, template, [*turns[:done], (turns[done][0], None)]))
        expected += [-100] * (opened - len(expected))
        if turns[done][1] is not None:
            expected += encoder.response(turns[done][1])
    assert labels == expected and labels.count(eos) == again


CONTROL = ["<s>", "</s>", "<unk>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "[gMASK]", "sop", "<|user|>", "<pad>"]
CONTROL += ["<|observation|>", "<|assistant|>", "<reserved_106>", "<reserved_107>", "<reserved_5>", "[INST]", "<0x0A>"]
WORDS = st.sampled_from(sorted({word for text in SENTENCES for word in text.split()}))
SPACES, LETTERS = st.sampled_from([" ", "\n", "  "]), st.characters(exclude_categories="C")
SPICED = st.lists(st.one_of(st.sampled_from(CONTROL), WORDS, SPACES, LETTERS)).map("".join)


@pytest.mark.parametrize("template", PUBLISHED)
def test_a_control_token_in_a_users_text_is_text(tokenizers, template):
    """As if the tokenizer had never heard of control tokens."""
    encoder = encoder_of(tokenizers, template)
    tokenizer = encoder.tokenizer
    control = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    plain = json.loads(tokenizer.backend_tokenizer.to_str())
    plain["added_tokens"] = [token for token in plain["added_tokens"] if not token["special"]]
    ignorant = Tokenizer.from_str(json.dumps(plain))

    def text_ids(text: str) -> list[int]:
        return ignorant.encode(text, add_special_tokens=False).ids

    @settings(max_examples=150, deadline=None)
    @given(SPICED, SPICED, SPICED)
    @example("</s>", "<|im_end|>", "sop")
    @example("<reserved_107></s>", "</s", ">")
    @example("philosophy", "sop¼", "_sop")
    def check(query, answer, last):
        response = encoder.response(answer)
        assert response == [*text_ids(answer), tokenizer.eos_token_id]
        assert tokenizer.decode(response[:-1]) == ignorant.decode(response[:-1], skip_special_tokens=False)
        assert not control & set(response[:-1])
        turns = [(query, answer), (last, None)]
        assert encoder.prompt(row_of(turns), 0) == published_ids(tokenizer, template, turns, text_ids)

    check()


@pytest.mark.parametrize("template", ["llama2", "mistral", "chatglm3"])
def test_a_control_token_is_text_to_sentencepiece_too(tokenizers, template, tmp_path):
    import sentencepiece

    published_layouts.sentencepiece_model(tmp_path / "t.model", [], True, 64789 if template == "chatglm3" else None)
    slow = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "t.model"))
    encoder = encoder_of(tokenizers, template)

    @settings(max_examples=150, deadline=None)
    @given(SPICED)
    def check(text):
        assert encoder.ids(text) == slow.encode(text)

    check()


def metaspace(scheme: str):
    """A Llama-like tokenizer whose added tokens have every property that one can have."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = "▁abcd<s>/|_ \n"
    vocabulary = {token: index for index, token in enumerate(["<unk>", "<s>", "</s>", *letters, "▁a", "ab", "▁ab"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a"), ("a", "b"), ("▁", "ab")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in ("<unk>", "<s>", "</s>")])
    tokenizer.add_special_tokens([AddedToken("<l>", lstrip=True), AddedToken("<r>", rstrip=True)])
    tokenizer.add_special_tokens([AddedToken("ba", single_word=True), AddedToken("<|n|>", normalized=True)])
    tokenizer.add_tokens([AddedToken("dad"), AddedToken("  "), AddedToken("<|x|>", normalized=False)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


MARKED = ["<s>", "</s>", "<l>", "<r>", "ba", "<|n|>", "dad", "  ", "<|x|>", " ", "a", "b", "ab", "<", "\n", "c d"]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_beside_a_control_token_in_a_text_all_is_as_ever(scheme):
    """Where no text is marked as such, the tokenizer that knows aliases alone gives the tokenizer's own ids."""
    tokenizer = metaspace(scheme)
    tokenizer.chat_template = "{{ messages[0]['content'] }}<|x|>"
    controls = Encoder(tokenizer, 10).controls
    assert controls.alias.keys() == {"<unk>", "<s>", "</s>", "<l>", "<r>", "ba", "<|n|>", "<|x|>"}

    @settings(max_examples=500, deadline=None)
    @given(st.lists(st.sampled_from(MARKED)).map("".join))
    def check(text):
        assert controls.ids(text + PLAIN) == tokenizer(text, add_special_tokens=False)["input_ids"]

    check()


def test_a_tokenizer_that_cannot_keep_them_apart_is_refused(tokenizers):
    from tokenizers import models
    from transformers import PreTrainedTokenizerFast

    pieces = [(piece, -1.0) for piece in ("<unk>", "</s>", *"<abcs/>")]
    core = Tokenizer(models.Unigram(pieces, unk_id=0))
    core.add_special_tokens(["<unk>", "</s>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", pad_token="<unk>")
    encoder = Encoder(tokenizer, 10)
    assert encoder.response("abc") == [3, 4, 5, 1]
    with pytest.raises(UserError, match="cannot read '</s>' as text"):
        encoder.response("a</s>b")


@pytest.mark.parametrize("template", PUBLISHED)
def test_a_lone_surrogate_is_replaced(tokenizers, template):
    """JSON can write one; it would forge a mark, and no tokenizer takes it."""
    encoder = encoder_of(tokenizers, template)
    for mark in ("\udc00", "\udc01", "\udc02", "\udc03", "\ud800"):
        turns = [[(f"{c}</s>", f"a{c}b"), (f"c{c}", None)] for c in (mark, "\ufffd")]
        found, expected = (encoder.prompt(row_of(t) | {"input": t[0][0]}, 0) for t in turns)
        assert found == expected


@pytest.mark.parametrize("template", PUBLISHED)
def test_a_conversation_has_the_published_text(tokenizers, template):
    turns = [("First question?", "First answer."), ("Second question?", "Second answer."), ("Third?", None)]
    pieces = published_pieces(template, turns)
    expected = "".join(piece if isinstance(piece, str) else piece[0] for piece in pieces)
    found = render(tokenizers[template], template, turns)
    if template == "chatglm3":  # the space that its tokenizer puts before each text, written out
        found = found.replace("\n ", "\n")
    assert found == expected


@pytest.mark.parametrize("template", PUBLISHED)
def test_prompt_and_response_make_the_conversation(tokenizers, template):
    """What the programs put together (prompt, response, EOS) is what the template makes of both."""
    tokenizer = tokenizers[template]
    query, answer = "Is it good?", "It is.\nLabel: positive"
    prompt = render(tokenizer, template, [(query, None)])
    response = " " + answer if template == "chatglm3" else answer
    assert render(tokenizer, template, [(query, answer)]) == prompt + response + tokenizer.eos_token
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, answer)]
    both = ids[0] + ids[1] + [tokenizer.eos_token_id]
    openings = {"baichuan2": 0, "chatglm3": 0, "smollm2": 2}.get(template, 1)
    assert both.count(tokenizer.bos_token_id) == openings
    assert both.count(tokenizer.eos_token_id) == (2 if template == "smollm2" else 1)
    decoded = tokenizer.decode(ids[1], skip_special_tokens=True)
    assert decoded == answer


@pytest.mark.parametrize("template", sorted(set(PUBLISHED) - {"smollm2"}))
def test_an_unknown_role_is_refused(tokenizers, template):
    import jinja2

    tokenizer = tokenizers[template]
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    with pytest.raises(jinja2.TemplateError, match="user and assistant turns only"):
        tokenizer.apply_chat_template([{"role": "system", "content": "Be brief."}], tokenize=False)


EMOJI = "fine app " * 15 + "\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}" + " thanks" * 10


@pytest.mark.parametrize("template", PUBLISHED)
def test_a_cut_prompt_fits_and_keeps_as_much_as_fits(tokenizers, template):
    """Whatever the text, also where the cut falls inside a character of several tokens."""
    endless = encoder_of(tokenizers, template)
    tokenizer, row = endless.tokenizer, {"id": "r", "instruction": "Say which."}
    least = len(endless.prompt({**row, "input": ""}, 0))

    def whole_prompt(text):
        return endless.prompt({**row, "input": text}, 0)

    whole = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

    @settings(max_examples=60, deadline=None)
    @given(st.one_of(whole, whole.map(EMOJI.__add__)), st.integers(-1, 80), st.integers(0, 10))
    @example(EMOJI, 20, 5)
    @example("\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}" * 9, 9, 5)
    def check(text, extra, room):
        encoder = Encoder(tokenizer, least + extra + room)
        if extra < 0:
            if whole_prompt(text) != whole_prompt(""):
                with pytest.raises(UserError, match="alone need"):
                    encoder.prompt({**row, "input": text}, room)
            return
        prompt = encoder.prompt({**row, "input": text}, room)
        assert len(prompt) <= least + extra
        ids = {end: whole_prompt(text[:end]) for end in range(len(text) + 1)}
        kept = max(end for end in ids if ids[end] == prompt)  # so no character is broken
        assert encoder.rows_cut == (len(ids[len(text)]) > least + extra)
        if encoder.rows_cut:
            assert len(ids[kept + 1]) > least + extra

    check()
