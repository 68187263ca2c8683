"""What a rationale claims first: its words up to a comma or a line break ("It is positive,").

Where the training rationales begin with a claim that tells the label, as the embedded writer's do, that claim is where
an answer decides, and what follows only argues for it. Reward models and RL then look at the claim alone.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from rllr.rows import read_responses
from rllr.tasks import Task, read_label

AGREE = 0.95  # of a task's rationales that for their label must make one and the same claim
MOST = 20  # different claims of a task with scores: more of them is free text


def claim_ends(tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> torch.Tensor:
    """(V,) bool: the tokens with which a claim ends, those with a comma or a line break in them."""
    texts = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
    ends = [i for i, text in enumerate(texts) if "," in text or "\n" in text]
    return torch.zeros(max(vocabulary, len(tokenizer)), dtype=torch.bool).index_fill(0, torch.tensor(ends), True)


def claim_part(tokens: torch.Tensor, kept: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    """(N, R) bool: the response tokens up to the first that ends a claim, itself included.

    Args:
        tokens, kept: (N, R) as in Packed. ends: (V,) from `claim_ends`.
    """
    ending = ends.to(tokens.device)[tokens].long()
    return kept & (ending.cumsum(1) - ending == 0)


def claim_of(response: list[int], ends: torch.Tensor) -> list[int]:
    """A response's tokens up to the first that ends its claim, itself included; the same as `claim_part`."""
    last = next((place for place, token in enumerate(response) if ends[token]), len(response))
    return response[: last + 1]


def scored_part(responses: list[list[int]], ends: torch.Tensor | None) -> list[list[int]]:
    """What a reward model reads of responses: their claims, or with `ends` None, for one with a head, all of them."""
    return responses if ends is None else [claim_of(response, ends) for response in responses]


def claims_by_label(said: Iterable[tuple[str, str]], tasks: dict[str, Task]) -> dict[str, dict[str, str]]:
    """task -> label -> the claim that rationales for it begin with; only tasks whose claims tell the labels apart.

    Two scores may share a claim. A label that no rationale was written for is worded as the others are, if these hold
    their label's own word.

    Args:
        said: (task, response), of training data; a response of no readable label says nothing.
    """
    counted: dict[str, dict[str, Counter]] = defaultdict(lambda: defaultdict(Counter))
    for task, response in said:
        if (label := read_label(response, tasks[task])) is None:
            continue
        if first := re.match(r"[^,\n]*,", response):  # not the label line of a response without rationale
            counted[task][label][first[0]] += 1
        else:
            counted[task][label][""] += 1
    found = {}
    for task, by_label in counted.items():
        claims = {label: counts.most_common(1)[0][0] for label, counts in by_label.items()}
        rows = sum(counts.total() for counts in by_label.values())
        agreeing = sum(counts.most_common(1)[0][1] for counts in by_label.values())
        different = len(set(claims.values()))
        wanted = different == len(claims) if tasks[task].kind != "score" else different <= MOST
        if "" in claims.values() or agreeing < AGREE * rows or different < 2 or not wanted:
            continue
        forms = {claim.replace(label, "{}") for label, claim in claims.items()}
        if len(forms) == 1 and "{}" in (form := forms.pop()):
            claims |= {label: form.replace("{}", label) for label in tasks[task].labels}
        found[task] = {label: claims[label] for label in tasks[task].labels or claims if label in claims}
    return found


def claims_in(responses: Path, tasks: dict[str, Task]) -> dict[str, dict[str, str]]:
    """`claims_by_label` of a file of training responses."""
    return claims_by_label(((row["task"], row["output"]) for row in read_responses(responses, tasks)), tasks)
