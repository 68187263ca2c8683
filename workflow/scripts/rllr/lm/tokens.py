"""Rows to token ids. Prompt and response are tokenised separately, as published; only input text is ever cut."""

import bisect
import re
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from rllr.cli import UserError, log
from rllr.files import HALF

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

# Marks in a rendered prompt, removed before it is tokenised. Lone surrogates: no UTF-8 text holds one.
PLAIN = "\udc00"  # the control token that follows is a user's text
CUT = "\udc01"  # what stands on either side is tokenised on its own
OPEN, CLOSE = "\udc02", "\udc03"  # an earlier answer, tokenised on its own
IGNORED = -100  # label of a token that is not trained


def valid(text: str) -> str:
    """The text with a replacement character for each lone surrogate."""
    return HALF.sub("\ufffd", text)


class Controls:
    """The control tokens of a tokenizer, which only the chat template writes: in a user's text they are text.

    They are the special tokens and the added ones that occur in the template.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self.tokenizer, self.added = tokenizer, tokenizer.added_tokens_decoder
        template = str(tokenizer.chat_template)
        # White space is a token of some tokenizers and stands in every template.
        control = [t for t in self.added.values() if t.special or (t.content in template and not t.content.isspace())]
        control.sort(key=lambda token: -len(token.content))  # the longest first
        names = [re.escape(token.content) for token in control]
        # Letter first: with the 256 special tokens of a Llama 3 that is ten times as fast. In words, too: what a word
        # is differs from library to library, and a mark too many changes nothing.
        letters = "".join(re.escape(token.content[0]) for token in control)
        self.anywhere = re.compile(f"(?=[{letters}])(?={'|'.join(names)})" if control else "(?!)")
        alone = [rf"(?<!\w){n}(?!\w)" if token.single_word else n for n, token in zip(names, control, strict=True)]
        self.written = re.compile(f"(?<!{PLAIN})(?:{'|'.join(alone)})")
        # What the control tokens are called while a user's text that holds one is tokenised. None can be guessed.
        secret = secrets.token_hex(8)
        self.alias = {token.content: f"\ufdd0{secret}{number}\ufdd1" for number, token in enumerate(control)}

    def as_text(self, text: str) -> str:
        """A user's text with its control tokens marked as text."""
        return self.anywhere.sub(PLAIN, valid(text))

    @cached_property
    def twin(self) -> "tuple[Tokenizer, dict[int | None, int]]":
        """A tokenizer with other names for the control tokens, and {its id of an added token: the tokenizer's}.

        It differs in nothing else, so that white space, prefixes and merges around a control token are the
        tokenizer's own.
        """
        from tokenizers import AddedToken, Tokenizer

        own = self.tokenizer.backend_tokenizer
        twin, ids = Tokenizer(own.model), {}
        twin.normalizer, twin.pre_tokenizer = own.normalizer, own.pre_tokenizer
        for index, token in sorted(self.added.items()):
            name = self.alias.get(token.content, token.content)
            kept = {key: getattr(token, key) for key in ("single_word", "lstrip", "rstrip", "normalized")}
            twin.add_tokens([AddedToken(name, special=False, **kept)])
            ids[twin.token_to_id(name)] = index
        return twin, ids

    def ids(self, text: str) -> list[int]:
        """Ids of a text in which PLAIN may stand; without it, those that the tokenizer itself gives.

        Raises:
            UserError: the tokenizer's model, too, makes a control token of that text (none of the paper's does).
        """
        if PLAIN not in text:
            return self.tokenizer(text, add_special_tokens=False)["input_ids"]
        twin, ids = self.twin
        named = self.written.sub(lambda match: self.alias[match[0]], text).replace(PLAIN, "")
        encoding = twin.encode(named, add_special_tokens=False)
        if leaked := self.alias.keys() & set(encoding.tokens) - {self.tokenizer.unk_token}:
            raise UserError(f"this tokenizer cannot read {leaked.pop()!r} as text; remove it from the rows")
        return [ids.get(index, index) for index in encoding.ids]


@dataclass
class Encoder:
    """Turns rows into token ids under a cutoff, counting what it cuts.

    A control token in a row's text (`</s>`, `<|im_end|>`) is encoded as the text that it is.

    Attributes:
        tokenizer: a fast tokenizer with a chat template, `eos_token_id` and a pad token that is not EOS.
        cutoff: longest prompt + response in tokens.
    """

    tokenizer: "PreTrainedTokenizerBase"
    cutoff: int
    rows_cut: int = field(default=0, init=False)
    tokens_cut: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.controls = Controls(self.tokenizer)

    def _rendered(self, row: dict, input_text: str) -> str:
        """The prompt with marks: history, then instruction, newline, input, in the chat template.

        A template may write `{{ cut }}` where the published engine tokenises what follows on its own.
        """
        text, messages = self.controls.as_text, []
        for user, answer in row.get("history", ()):
            messages += [{"role": "user", "content": text(user)}]
            messages += [{"role": "assistant", "content": f"{OPEN}{text(answer)}{CLOSE}"}]
        query = "\n".join(part for part in (row["instruction"], input_text) if part)
        messages.append({"role": "user", "content": text(query)})
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, cut=CUT)

    def _pieces(self, row: dict, input_text: str) -> list[tuple[list[int], bool]]:
        """The prompt in pieces that are tokenised each on its own: ids, and whether they are an earlier answer."""
        # Texts and answers take turns; at any other mark the answer is None.
        marks = f"{OPEN}([^{OPEN}{CLOSE}]*){CLOSE}|[{CUT}{OPEN}{CLOSE}]"
        parts = enumerate(re.split(marks, self._rendered(row, input_text)))
        pieces = [(self.controls.ids(part), place % 2 == 1) for place, part in parts if part]
        return [piece for piece in pieces if piece[0]]

    def ids(self, text: str) -> list[int]:
        """Ids of a text of its own."""
        return self.controls.ids(self.controls.as_text(text))

    def response(self, text: str) -> list[int]:
        """Ids of a response, EOS included."""
        return [*self.ids(text), self.tokenizer.eos_token_id]

    def prompt(self, row: dict, room: int) -> list[int]:
        """Ids of the prompt in at most `cutoff - room` tokens: where it is longer, with the longest part of the input
        that fits, from its start, whole characters only.

        Raises:
            UserError: the template and the instruction alone do not fit.
        """
        return self.dialogue(row, room)[0]

    def dialogue(self, row: dict, room: int) -> tuple[list[int], list[int]]:
        """Ids of the prompt, as `prompt` gives them, and their labels: earlier answers are trained, nothing else.

        The token after an answer has EOS for its label, whatever the template puts there (Baichuan2 and ChatGLM3: the
        next query's marker), as published.
        """
        text, budget = row["input"], self.cutoff - room
        pieces = self._pieces(row, text)
        if sum(len(piece) for piece, _ in pieces) > budget:
            kept = text[: self._fitting(row, budget, room)]
            self.rows_cut += 1
            self.tokens_cut += len(self.ids(text)) - len(self.ids(kept))
            pieces = self._pieces(row, kept)
        ids, labels, answered = [], [], False
        for piece, is_answer in pieces:
            ids += piece
            labels += piece if is_answer else [IGNORED] * len(piece)
            if answered:
                labels[-len(piece)] = self.tokenizer.eos_token_id
            answered = is_answer
        return ids, labels

    def _fitting(self, row: dict, budget: int, room: int) -> int:
        """Characters of the input that fit: as many whole tokens as possible, then as many characters of the next.

        Searched by halving, so that it ends whatever the tokenizer does at the cut.
        """
        text = row["input"]

        def length(end: int) -> int:
            return sum(len(piece) for piece, _ in self._pieces(row, text[:end]))

        spans = self.tokenizer(valid(text), add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        # A character of several tokens (an emoji) gives each of them the same end.
        ends = [0, *sorted({end for _, end in spans if end})]
        fitting = bisect.bisect_right(ends, budget, key=length)
        if not fitting:
            raise UserError(
                f"row {row['id']}: template, instruction and response alone need {length(0) + room} tokens, "
                f"the cutoff is {self.cutoff}; raise `cutoff` or shorten the instruction"
            )
        start, stop = ends[fitting - 1], (ends[fitting : fitting + 1] or [len(text)])[0]
        return start + bisect.bisect_right(range(start + 1, stop), budget, key=length)

    def report(self, what: str, lengths: list[int]) -> None:
        """Log how long the rows are and how many were cut."""
        log(
            f"{what}: {len(lengths)} sequences, {sum(lengths)} tokens, longest {max(lengths)}; "
            f"cut to {self.cutoff}: {self.rows_cut} rows, {self.tokens_cut} tokens of input text"
        )
