"""Truncation: what is left out of an example that is too long for `format.max_seq_length`."""

import functools
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.templates import Rendered, question

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = Mapping[str, Any]
Asked = TypeVar("Asked")  # an example in tokens


def cut_output(whole: Rendered, limit: int) -> Rendered:
    """The first `limit` tokens; nothing is supervised where they hold none of the last answer."""
    spans = [(begin, min(end, limit)) for begin, end in whole.spans if begin < limit]
    return whole._replace(input_ids=whole.input_ids[:limit], spans=spans if whole.prompt_tokens < limit else [])


def cut_prompt(
    example: Example,
    whole: Asked,
    limit: int,
    tokenizer: "PreTrainedTokenizerBase",
    render: Callable[[Example], Asked],
    tokens: Callable[[Asked], int],
) -> Asked:
    """The example, rendered as `whole`, with less to ask, but not with nothing.

    What goes: the oldest exchanges of its history, then the end of its input, then that of its instruction.  Contents
    are cut and rendered anew, so that all of the template's marks stay.  `tokens` says how long a rendering is, `limit`
    how long it may be.  `whole` where even that is too long.
    """
    example, found = _without_old_exchanges(example, whole, limit, render, tokens)
    for field in ("input", "instruction"):
        example, found = _without_end(example, found, field, limit, tokenizer, render, tokens)
    return found if tokens(found) <= limit and question(example).strip() else whole


def _without_old_exchanges(
    example: Example,
    whole: Asked,
    limit: int,
    render: Callable[[Example], Asked],
    tokens: Callable[[Asked], int],
) -> tuple[Example, Asked]:
    """As many of the last exchanges as fit, or none; one begins where the user speaks."""
    history = example["history"]
    if not history:
        return example, whole
    begins = [place for place, turn in enumerate(history) if place and turn["role"] == "user"] + [len(history)]
    shorter = functools.cache(lambda begin: render(example | {"history": history[begin:]}))
    fitting = bisect_left(begins, True, key=lambda begin: tokens(shorter(begin)) <= limit)
    begin = begins[min(fitting, len(begins) - 1)]
    return example | {"history": history[begin:]}, shorter(begin)


def _without_end(
    example: Example,
    found: Asked,
    field: str,
    limit: int,
    tokenizer: "PreTrainedTokenizerBase",
    render: Callable[[Example], Asked],
    tokens: Callable[[Asked], int],
) -> tuple[Example, Asked]:
    """Cut as many tokens off a text as are too many; where the rest, rendered anew, is too long still, twice as many.

    Twice, since a text whose cut shows little in the rendering would else be rendered once for each of its tokens.
    """
    text, times = example[field], 1
    over = tokens(found) - limit
    if over <= 0 or not text:
        return example, found
    ends = [end for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    while over > 0 and ends:
        del ends[-over * times :]
        example = example | {field: text[: ends[-1]] if ends else ""}
        found = render(example)
        over, times = tokens(found) - limit, 2 * times
    return example, found
