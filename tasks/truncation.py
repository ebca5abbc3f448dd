"""Truncation: what is left out of an example that is too long for `format.max_seq_length`."""

import functools
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from tasks.templates import Rendered, messages, question, render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Example = Mapping[str, Any]


def cut_output(whole: Rendered, limit: int) -> Rendered:
    """The first `limit` tokens; nothing is supervised where they hold none of the last answer."""
    spans = [(begin, min(end, limit)) for begin, end in whole.spans if begin < limit]
    return whole._replace(input_ids=whole.input_ids[:limit], spans=spans if whole.prompt_tokens < limit else [])


def cut_prompt(
    example: Example, whole: Rendered, limit: int, tokenizer: "PreTrainedTokenizerBase", train_on: str
) -> Rendered:
    """The example, rendered as `whole`, with less to ask, but not with nothing.

    What goes: the oldest exchanges of its history, then the end of its input, then that of its instruction.  Contents
    are cut and rendered anew, so that all of the template's marks stay.  `whole` where even that is too long.
    """

    def rendered(shorter: Example) -> Rendered:
        return render([messages(shorter)], tokenizer, train_on)[0]

    example, found = _without_old_exchanges(example, whole, limit, rendered)
    for field in ("input", "instruction"):
        example, found = _without_end(example, found, field, limit, tokenizer, rendered)
    return found if len(found.input_ids) <= limit and question(example).strip() else whole


def _without_old_exchanges(
    example: Example, whole: Rendered, limit: int, rendered: Callable[[Example], Rendered]
) -> tuple[Example, Rendered]:
    """As many of the last exchanges as fit, or none; one begins where the user speaks."""
    history = example["history"]
    if not history:
        return example, whole
    begins = [place for place, turn in enumerate(history) if place and turn["role"] == "user"] + [len(history)]
    shorter = functools.cache(lambda begin: rendered(example | {"history": history[begin:]}))
    fitting = bisect_left(begins, True, key=lambda begin: len(shorter(begin).input_ids) <= limit)
    begin = begins[min(fitting, len(begins) - 1)]
    return example | {"history": history[begin:]}, shorter(begin)


def _without_end(
    example: Example,
    found: Rendered,
    field: str,
    limit: int,
    tokenizer: "PreTrainedTokenizerBase",
    rendered: Callable[[Example], Rendered],
) -> tuple[Example, Rendered]:
    """Cut as many tokens off a text as are too many; where the rest, rendered anew, is too long still, twice as many.

    Twice, since a text whose cut shows little in the rendering would else be rendered once for each of its tokens.
    """
    text, times = example[field], 1
    over = len(found.input_ids) - limit
    if over <= 0 or not text:
        return example, found
    ends = [end for _, end in tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]]
    while over > 0 and ends:
        del ends[-over * times :]
        example = example | {field: text[: ends[-1]] if ends else ""}
        found = rendered(example)
        over, times = len(found.input_ids) - limit, 2 * times
    return example, found
