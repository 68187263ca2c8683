"""Rows to token ids. Prompt and response are tokenised separately, as published; only input text is ever cut."""

import bisect
from dataclasses import dataclass, field

from rllr.cli import UserError, log


@dataclass
class Encoder:
    """Turns rows into token ids under a cutoff, counting what it cuts.

    Attributes:
        tokenizer: a fast tokenizer with a chat template, `eos_token_id` and a pad token that is not EOS.
        cutoff: longest prompt + response in tokens.
    """

    tokenizer: object
    cutoff: int
    rows_cut: int = field(default=0, init=False)
    tokens_cut: int = field(default=0, init=False)

    def prompt_text(self, row: dict, input_text: str) -> str:
        """The prompt as the model sees it: history, then instruction, newline, input, in the chat template."""
        messages = []
        for user, assistant in row.get("history", ()):
            messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
        query = "\n".join(part for part in (row["instruction"], input_text) if part)
        messages.append({"role": "user", "content": query})
        return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def response(self, text: str) -> list[int]:
        """Ids of a response, EOS included."""
        return [*self.ids(text), self.tokenizer.eos_token_id]

    def prompt(self, row: dict, room: int) -> list[int]:
        """Ids of the prompt in at most `cutoff - room` tokens: where it is longer, with the longest part of the input
        that fits, from its start, whole characters only.

        Raises:
            UserError: the template and the instruction alone do not fit.
        """
        text, budget = row["input"], self.cutoff - room
        ids = self.ids(self.prompt_text(row, text))
        if len(ids) <= budget:
            return ids
        kept = text[: self._fitting(row, budget, room)]
        self.rows_cut += 1
        self.tokens_cut += len(self.ids(text)) - len(self.ids(kept))
        return self.ids(self.prompt_text(row, kept))

    def _fitting(self, row: dict, budget: int, room: int) -> int:
        """Characters of the input that fit: as many whole tokens as possible, then as many characters of the next.

        Searched by halving, so that it ends whatever the tokenizer does at the cut.
        """
        text = row["input"]

        def length(end: int) -> int:
            return len(self.ids(self.prompt_text(row, text[:end])))

        spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
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
