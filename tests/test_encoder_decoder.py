"""Encoder-decoder models: what the encoder reads, what the decoder learns, and what is refused."""

import json

import pytest
import torch
from conftest import ROWS
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tasks.config import FormatConfig
from tasks.encoded import Refused
from tasks.errors import ConfigError, ModelError
from tasks.families import encoder_decoder
from tasks.schema import EXAMPLE

MARKS = {"plain": ("", ""), "t5": ("", "</s>"), "bart": ("<s>", "</s>")}
"""What tokenizers put around a text."""


def example(**fields: object) -> dict[str, object]:
    return dict.fromkeys(EXAMPLE.names, "") | {"history": [], "tool_turns": []} | fields


def turn(role: str, content: str, calls: str = "") -> dict[str, str]:
    return {"role": role, "content": content, "tool_calls": calls}


@pytest.fixture(scope="module", params=MARKS)
def tokenizer(request: pytest.FixtureRequest):
    """A tokenizer with the marks of a kind; T5's writes the space before a word as part of it."""
    made = Tokenizer(models.BPE() if request.param != "t5" else models.Unigram())
    specials = ["<pad>", "<s>", "</s>"]
    texts = [row["instruction"] + row["output"] for row in ROWS]
    if request.param == "t5":
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(vocab_size=150, special_tokens=[*specials, "<unk>"], unk_token="<unk>")
    else:
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=specials, initial_alphabet=alphabet)
    made.train_from_iterator(texts, trainer)
    begin, end = MARKS[request.param]
    if end:
        made.post_processor = processors.TemplateProcessing(
            single=f"{begin} $A {end}".strip(), special_tokens=[(mark, specials.index(mark)) for mark in specials]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", bos_token="<s>", pad_token="<pad>")
    fast.chat_template = encoder_decoder.chat_template("auto", fast)
    fast.marks = MARKS[request.param]
    return fast


@pytest.fixture
def plain(tiny_base):
    """A tokenizer of bytes that puts nothing around a text."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    tokenizer.chat_template = encoder_decoder.chat_template("auto", tokenizer)
    return tokenizer


def encode(row: dict[str, object], tokenizer, **settings: object):
    (found,) = encoder_decoder.encode([row], tokenizer, FormatConfig(**settings))
    return found


def asked(row: dict[str, object], tokenizer) -> str:
    return tokenizer.decode(encode(row, tokenizer).input_ids)


def test_one_message_stands_alone_and_several_have_their_roles(plain):
    once = example(instruction="Say red.", input="now", output="red")
    assert asked(once, plain) == "Say red.\n\nnow"
    more = once | {"system": "Be kind.", "history": [turn("user", "Hi."), turn("assistant", "Hello.")]}
    assert asked(more, plain) == "System: Be kind.\n\nUser: Hi.\n\nAssistant: Hello.\n\nUser: Say red.\n\nnow"


def test_one_message_is_read_as_the_tokenizer_alone_would_write_it(tokenizer):
    """So a pre-trained model sees what it was pre-trained on."""
    row = example(instruction="Say the first of", input="red green", output="red")
    found = encode(row, tokenizer)
    assert found.input_ids == tokenizer("Say the first of\n\nred green")["input_ids"]
    assert found.input_ids == encoder_decoder.prompt_ids(row, tokenizer)


def test_the_template_that_is_saved_asks_with_the_same_tokens(tokenizer, tmp_path):
    history = [turn("user", "Say red."), turn("assistant", "red")]
    row = example(instruction="Say the last of", input="pink gold", output="gold", history=history)
    tokenizer.save_pretrained(tmp_path)
    chat = [{"role": each["role"], "content": each["content"]} for each in history]
    chat.append({"role": "user", "content": "Say the last of\n\npink gold"})
    served = AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(
        chat, add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert served == encode(row, tokenizer).input_ids


def test_the_stop_token_is_trained_and_stands_once(tokenizer):
    labels = encode(example(instruction="Say red.", output="red"), tokenizer).labels
    begin, _ = tokenizer.marks
    text = tokenizer("red", add_special_tokens=False)["input_ids"]
    assert labels == tokenizer.convert_tokens_to_ids([begin] if begin else []) + text + [tokenizer.eos_token_id]


def test_tools_calls_and_results_are_written(plain):
    call = json.dumps([{"name": "paint", "arguments": {"colour": "red"}}])
    tools = json.dumps([{"type": "function", "function": {"name": "paint", "parameters": {}}}])
    row = example(instruction="Paint it red.", output="On it.", tool_calls=call, tools=tools)
    text = asked(row, plain)
    assert text.startswith("These tools can be called:\n") and text.endswith("\n\nUser: Paint it red.")
    written = '<tool_call>\n{"name": "paint", "arguments": {"colour": "red"}}\n</tool_call>'
    answer = plain.decode(encode(row, plain).labels[:-1])
    assert answer == f"On it.\n{written}"
    after = row | {"tool_turns": [turn("assistant", "", call), turn("tool", "done")], "tool_calls": ""}
    assert asked(after, plain).endswith(f"User: Paint it red.\n\nAssistant: {written}\n\nTool: done")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"instruction": "Say <|im_end|> red."}, "special_token_in_text"),
        ({"output": "<|endoftext|>"}, "special_token_in_text"),
        ({"instruction": ""}, "empty_prompt"),
        ({"output": ""}, "no_supervised_tokens"),
        ({"instruction": "red " * 50}, "too_many_tokens"),
        ({"output": "red " * 50}, "too_many_tokens"),
    ],
)
def test_what_cannot_be_used_is_refused(plain, fields, reason):
    found = encode(example(instruction="Say red.", output="red") | fields, plain, max_seq_length=16)
    assert isinstance(found, Refused) and found.reason == reason
    assert found.detail


def test_the_detail_says_which_side_is_too_long(plain):
    long = "red " * 50
    row = example(instruction="Say red.", output="red")
    assert (
        "tokens are asked, format.max_seq_length is 16"
        in encode(row | {"instruction": long}, plain, max_seq_length=16).detail
    )
    assert "tokens are answered" in encode(row | {"output": long}, plain, max_seq_length=16).detail


def test_each_side_has_all_of_max_seq_length(plain):
    row = example(instruction="abcdefgh", output="hgfedcb")
    assert [len(encode(row, plain).input_ids), len(encode(row, plain).labels)] == [8, 8]
    assert not isinstance(encode(row, plain, max_seq_length=8), Refused)
    assert isinstance(encode(row | {"instruction": "abcdefgh0"}, plain, max_seq_length=8), Refused)
    assert isinstance(encode(row | {"output": "hgfedcba"}, plain, max_seq_length=8), Refused)


def test_cut_prompt_cuts_the_end_of_what_is_asked_and_keeps_the_marks(tokenizer):
    row = example(instruction="Say the first of " + "red green " * 20, output="red")
    whole, cut = encode(row, tokenizer), encode(row, tokenizer, max_seq_length=12, truncation="cut_prompt")
    assert cut.truncated and not whole.truncated
    assert 10 <= len(cut.input_ids) <= 12
    end = 1 if tokenizer.marks[1] else 0
    inside = len(cut.input_ids) - end - 1  # the last token may be a piece of a longer one
    assert cut.input_ids[:inside] == whole.input_ids[:inside]
    assert cut.input_ids[len(cut.input_ids) - end :] == whole.input_ids[len(whole.input_ids) - end :]
    assert cut.labels == whole.labels and cut.prompt_tokens == len(cut.input_ids)


def test_cut_prompt_drops_the_oldest_exchanges_first(plain):
    history = [
        turn("user", "Say red " * 9),
        turn("assistant", "red"),
        turn("user", "Say pink."),
        turn("assistant", "pink"),
    ]
    row = example(system="Be kind.", instruction="Say gold.", output="gold", history=history)
    found = encode(row, plain, max_seq_length=60, truncation="cut_prompt")
    assert plain.decode(found.input_ids) == (
        "System: Be kind.\n\nUser: Say pink.\n\nAssistant: pink\n\nUser: Say gold."
    )
    assert found.truncated


def test_a_question_of_which_no_word_is_left_is_refused(plain):
    row = example(system="Be kind.", instruction="Say gold.", output="gold")
    room = len(encoder_decoder.prompt_ids(row | {"instruction": ""}, plain))
    found = encode(row, plain, max_seq_length=room, truncation="cut_prompt")
    assert isinstance(found, Refused) and found.reason == "too_many_tokens"
    assert encode(row, plain, max_seq_length=room + 2, truncation="cut_prompt").truncated


def test_cut_output_cuts_the_end_of_the_answer_and_does_not_train_the_stop_token(plain):
    row = example(instruction="Say red.", output="red green " * 20)
    whole, cut = encode(row, plain), encode(row, plain, max_seq_length=12, truncation="cut_output")
    assert cut.labels == whole.labels[:12] and plain.eos_token_id not in cut.labels
    assert cut.truncated and cut.input_ids == whole.input_ids


@pytest.mark.parametrize(
    ("truncation", "fields"),
    [("cut_output", {"instruction": "red " * 50}), ("cut_prompt", {"output": "red " * 50})],
)
def test_a_cut_of_one_side_does_not_help_the_other(plain, truncation, fields):
    row = example(instruction="Say red.", output="red") | fields
    found = encode(row, plain, max_seq_length=16, truncation=truncation)
    assert isinstance(found, Refused) and found.reason == "too_many_tokens"


def test_training_on_all_turns_is_for_decoders(plain):
    with pytest.raises(ConfigError, match="train_on: all is for decoders"):
        encode(example(instruction="a", output="b"), plain, train_on="all")


def test_a_named_template_is_used_as_it_is(plain):
    from tasks.templates import TEMPLATES

    assert encoder_decoder.chat_template("chatml", plain) == TEMPLATES["chatml"]
    plain.chat_template = "{{ messages[0]['content'] }}!"
    assert encoder_decoder.chat_template("auto", plain) == plain.chat_template


def test_the_decoder_reads_the_answer_one_token_later(scratch_base):
    """It begins with decoder_start_token_id, and what it is to say next is never what it reads."""
    model = encoder_decoder.load(scratch_base("t5"))
    seen: list[torch.Tensor] = []
    model.decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs["input_ids"]), with_kwargs=True)
    batch = encoder_decoder.collate([{"input_ids": [5, 6], "labels": [7, 8, 9]}, {"input_ids": [5], "labels": [4]}])
    encoder_decoder.summed_loss(model, batch)
    assert seen[-1].tolist() == [[0, 7, 8], [0, 4, 0]]


def test_a_base_that_does_not_say_how_an_answer_begins_is_refused(scratch_base, tmp_path):
    import shutil

    folder = shutil.copytree(scratch_base("t5"), tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    del config["decoder_start_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="no decoder_start_token_id"):
        encoder_decoder.load(folder)


def test_habits_of_the_base_do_not_steer_the_answers(scratch_base, tmp_path):
    """Summarisers come with beams, least lengths and forbidden repetitions, which tuning knows nothing of."""
    import shutil

    folder = shutil.copytree(scratch_base("bart"), tmp_path / "base")
    rows = [{"input_ids": [5, 6, 7], "labels": [5]}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    generation = encoder_decoder.generation_config(tokenizer, 8)
    before = encoder_decoder.answers(encoder_decoder.load(folder), rows, generation, 1, "")
    habits = {"num_beams": 4, "no_repeat_ngram_size": 1, "forced_bos_token_id": 9, "decoder_start_token_id": 3}
    (folder / "generation_config.json").write_text(json.dumps(habits))
    assert encoder_decoder.answers(encoder_decoder.load(folder), rows, generation, 1, "") == before
