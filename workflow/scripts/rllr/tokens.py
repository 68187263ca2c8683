"""Rows to token ids. Prompt and response are tokenised separately, as published; only input text is ever cut."""

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
        """Ids of the prompt in at most `cutoff - room` tokens; the tail of the input goes first.

        Raises:
            UserError: the template and the instruction alone do not fit.
        """
        text, budget, cut = row["input"], self.cutoff - room, 0
        ids = self.ids(self.prompt_text(row, text))
        while len(ids) > budget:
            spans = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
            kept = len(spans) - (len(ids) - budget)
            if not spans or budget <= 0:
                raise UserError(
                    f"row {row['id']}: template, instruction and response alone need {len(ids) + room} tokens, "
                    f"the cutoff is {self.cutoff}; raise `cutoff` or shorten the instruction"
                )
            cut += len(spans) - max(kept, 0)
            text = text[: spans[kept - 1][1]] if kept > 0 else ""
            ids = self.ids(self.prompt_text(row, text))
        self.rows_cut += cut > 0
        self.tokens_cut += cut
        return ids

    def report(self, what: str, lengths: list[int]) -> None:
        """Log how long the rows are and how many were cut."""
        log(
            f"{what}: {len(lengths)} sequences, {sum(lengths)} tokens, longest {max(lengths)}; "
            f"cut to {self.cutoff}: {self.rows_cut} rows, {self.tokens_cut} tokens of input text"
        )
