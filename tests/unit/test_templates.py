"""Chat templates turn by turn against the published engine's, which encodes a template piece by piece."""

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import published_layouts
from published_layouts import SENTENCES
from rllr.cli import UserError
from rllr.lm.tokens import Encoder

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


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    """Per template, a tokenizer of the kind that its models have."""
    from rllr.base import convert, scratch, tokenizer

    folder = tmp_path_factory.mktemp("tokenizers")
    symbols = [f"<mask_{i}>" for i in range(86)] + [f"<reserved_{i}>" for i in range(108)]
    published_layouts.sentencepiece_model(folder / "llama.model", [], dummy_prefix=True)
    published_layouts.sentencepiece_model(folder / "baichuan.model", symbols, dummy_prefix=False)
    published_layouts.sentencepiece_model(folder / "chatglm.model", [], dummy_prefix=True, pieces=64789)
    llama = tokenizer.from_sentencepiece(folder / "llama.model", {})
    found = {
        "llama2": llama,
        "mistral": llama,
        "default": llama,
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


@pytest.mark.parametrize("template", ["llama2", "mistral", "baichuan2", "chatglm3"])
@pytest.mark.parametrize("query", [SENTENCES[0], "Two lines,\nof which the second ends in a space "])
def test_a_prompt_has_the_published_ids(tokenizers, template, query):
    tokenizer = tokenizers[template]
    expected = []
    for piece in published_pieces(template, [(query, None)]):
        if isinstance(piece, tuple):
            expected.append(tokenizer.convert_tokens_to_ids(piece[0]))
        else:
            expected += tokenizer(piece, add_special_tokens=False)["input_ids"]
    prompt = render(tokenizer, template, [(query, None)])
    assert tokenizer(prompt, add_special_tokens=False)["input_ids"] == expected


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
    tokenizer = tokenizers[template]
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text().removesuffix("\n")
    row = {"id": "r", "instruction": "Say which."}
    least = len(Encoder(tokenizer, 10**6).prompt({**row, "input": ""}, 0))
    whole = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)

    @settings(max_examples=60, deadline=None)
    @given(st.one_of(whole, whole.map(EMOJI.__add__)), st.integers(-1, 80), st.integers(0, 10))
    @example(EMOJI, 20, 5)
    @example("\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}" * 9, 9, 5)
    def check(text, extra, room):
        encoder = Encoder(tokenizer, least + extra + room)
        if extra < 0:
            if encoder.ids(encoder.prompt_text(row, text)) != encoder.ids(encoder.prompt_text(row, "")):
                with pytest.raises(UserError, match="alone need"):
                    encoder.prompt({**row, "input": text}, room)
            return
        prompt = encoder.prompt({**row, "input": text}, room)
        assert len(prompt) <= least + extra
        ids = {end: encoder.ids(encoder.prompt_text(row, text[:end])) for end in range(len(text) + 1)}
        kept = max(end for end in ids if ids[end] == prompt)  # so no character is broken
        assert encoder.rows_cut == (len(ids[len(text)]) > least + extra)
        if encoder.rows_cut:
            assert len(ids[kept + 1]) > least + extra

    check()
