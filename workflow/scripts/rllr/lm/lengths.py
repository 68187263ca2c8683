"""Room for an answer: the tokens that the responses of the training data need, known before anything is trained."""

from pathlib import Path

from rllr.cli import UserError, log
from rllr.config import AUTO
from rllr.files import read_jsonl
from rllr.lm.tokens import Encoder

CUT_SHARE = 0.01  # of the training responses that a number given in the config may cut


def with_margin(longest: int) -> int:
    """`longest` tokens and a quarter more, in steps of 8: an answer may be wordier than those trained on."""
    return -(-longest * 5 // 32) * 8


def answer_room(setting: int | str, responses: Path, encoder: Encoder) -> int:
    """`max_new_tokens` in tokens: the setting's number or, for `auto`, the longest training response with a margin.

    Args:
        setting: the config's max_new_tokens.
        responses: the file whose responses (field `output`, one text a row) the answers are to be like.
        encoder: gives a response's tokens, EOS included.

    Raises:
        UserError: the number cuts more than CUT_SHARE of the responses; the file has none, or a row without.
    """
    lengths = []
    for number, row in read_jsonl(responses):
        if not isinstance(row.get("output"), str):
            raise UserError(
                f"{responses} line {number}: field output: expected a response text, found {row.get('output')!r:.80}"
            )
        lengths.append(len(encoder.response(row["output"])))
    if not lengths:
        raise UserError(f"{responses}: the file is empty; expected the responses that answers are to be like")
    longest = max(lengths)
    if setting == AUTO:
        log(f"max_new_tokens: {with_margin(longest)} (the longest of {len(lengths)} training responses has {longest})")
        return with_margin(longest)
    assert isinstance(setting, int)  # the schema lets nothing else through
    cut = sum(length > setting for length in lengths)
    if cut > CUT_SHARE * len(lengths):
        raise UserError(
            f"max_new_tokens {setting} cuts {cut} of the {len(lengths)} responses in {responses.name} "
            f"({cut / len(lengths):.0%}; the longest has {longest} tokens): an answer cut short has no label; "
            f"give {with_margin(longest)}, or auto"
        )
    return setting
