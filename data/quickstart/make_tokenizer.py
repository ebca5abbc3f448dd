"""The quickstart's own byte-level BPE tokenizer, trained on its own corpus."""

import itertools
import json
import re

import corpus
import world
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MERGED_VOCABULARY = 2048
DOCUMENTS = 30_000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
# The pattern that is known elsewhere as "llama-bpe"; no token holds two digits, so digits stand one by one.
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _splits(*patterns: str) -> pre_tokenizers.PreTokenizer:
    split = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*split, to_bytes])


def _merged() -> dict:
    """Train plain BPE on corpus text; its model as a dictionary with `vocab` and `merges`."""
    tokenizer = Tokenizer(models.BPE())
    # While training, Chinese characters and digits stand alone: no merge ever joins two of them.
    tokenizer.pre_tokenizer = _splits(PATTERN, r"\p{Han}|\p{N}")
    trainer = trainers.BpeTrainer(
        vocab_size=MERGED_VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = itertools.islice(corpus.documents(f"{world.SEED}-tokenizer"), DOCUMENTS)
    tokenizer.train_from_iterator(texts, trainer)
    return json.loads(tokenizer.to_str())["model"]


def _whole_words() -> list[str]:
    """Names and words of the tables at the start of a line and after a space; the role names of a chat."""
    cells = set().union(*(world.cells(path.stem) for path in (world.HERE / "tables").glob("*.csv")))
    cells |= {word.upper() for word in world.case_words()}
    parts = {part for cell in cells for part in re.findall("[A-Za-z]+", cell)}
    return sorted(parts) + sorted(f"Ġ{part}" for part in parts) + ["user", "assistant"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train the tokenizer: frequent pieces by merging, then whole words of the tables; no chat template."""
    merged = _merged()
    vocabulary = dict(merged["vocab"])
    for word in _whole_words():
        vocabulary.setdefault(word, len(vocabulary))
    # With `ignore_merges` a word that is in the vocabulary is one token, whether or not merges lead to it.
    model = models.BPE(vocabulary, [tuple(pair) for pair in merged["merges"]], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = _splits(PATTERN)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    end = SPECIAL[0]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=end, eos_token=end, pad_token=end, model_max_length=2048
    )
