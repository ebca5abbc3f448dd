"""Model families: how each is loaded, encoded, batched, scored and asked.  One module each, with the same functions.

AUTO                                            the class of transformers that opens its models
METRICS                                         metrics of `evaluate` when the config names none
PACKS                                           True where several examples can share a row
chat_template(name, tokenizer)                  the Jinja text that asks a model, as format.template names it; or None
encode(examples, tokenizer, config, labels)     examples in tokens, or the reason why one cannot be used
prompt_ids(example, tokenizer)                  the tokens that the model is asked with, from the example's texts alone
load(folder, dtype, labels)                     the model in a folder, on its device, ready to evaluate
from_scratch(folder, seed, labels)              one of the same shape with random weights
collate(rows)                                   rows of TOKENIZED as a batch of tensors
summed_loss(model, batch, label_smoothing)      the loss of a batch, summed over its supervised tokens
example_losses(model, rows)                     the same for each row alone, with the number of its supervised tokens
generation_config(tokenizer, max_new_tokens)    how answers are generated, or None where nothing is
answers(model, rows, generation, batch_size, title)   what the model answers, as token ids or the number of a class
text(answer, tokenizer, model)                  an answer in words
reference(row, tokenizer, model)                what was to be answered, in words
"""

import importlib
import json
from pathlib import Path
from types import ModuleType

from tasks.errors import ModelError

FAMILIES = ("decoder_only", "encoder_decoder", "encoder_classifier")

_CLASSIFIER = "ForSequenceClassification"
_ENDINGS = {"decoder_only": ("ForCausalLM", "LMHeadModel"), "encoder_classifier": ("ForMaskedLM", "ForPreTraining")}
_ENCODERS = ("albert", "bert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta")


def find(folder: Path) -> str:
    """The family of the model in `folder`, from its config.json: the name of its class, else its type.

    Raises ModelError when it cannot be told.
    """
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    named = config.get("architectures")
    architecture = str(named[0]) if isinstance(named, list) and named else ""
    if architecture.endswith(_CLASSIFIER):  # BART can be one too
        return "encoder_classifier"
    if config.get("is_encoder_decoder"):
        return "encoder_decoder"
    for family, endings in _ENDINGS.items():
        if architecture.endswith(endings):
            return family
    if config.get("model_type") in _ENCODERS:
        return "encoder_classifier"
    raise ModelError(
        f"model.base: cannot tell the family of {folder} from its config.json (architectures {architecture or 'none'}, "
        f"model_type {config.get('model_type')}); set model.family to one of: {', '.join(FAMILIES)}"
    )


def load_family(name: str) -> ModuleType:
    """The module of a family; importing torch takes seconds, so it is done only where a model is needed."""
    return importlib.import_module(f"tasks.families.{name}")
