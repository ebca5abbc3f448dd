"""One system that packs or prepares, in its own process and interpreter.

python training_preparation.py packing|preparation SYSTEM FOLDER leaves FOLDER/figures.json:
packing       `efficiency_CAPACITY`, tokens over places in the rows; `cpu_s` for the million of lengths.json
preparation   `cpu_s` from texts to packed rows; `digests` of ids and labels of each row, in any order
Each with `version`.  FOLDER holds what training_inputs writes, and for packing lengths.json.
"""

import hashlib
import importlib.metadata
import json
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training_turns import FIGURES, Task

LENGTHS = "lengths.json"
CAPACITIES = (512, 1024, 2048)
TIMED = 1024
"""The capacity at which a million lengths are packed."""

Figures = dict[str, Any]


def ours_packing(folder: Path) -> Figures:
    """Which row each item is in; the tokens stay where they are."""
    import numpy as np

    from tasks.packing import pack

    pack([1, 2, 3], 4)  # compiled, or loaded, before the clock runs
    efficiency, million = _lengths(folder, lambda lengths, capacity: int(pack(lengths, capacity).max()) + 1)
    million = np.array(million, np.int32)
    began = _cpu()
    pack(million, TIMED)
    return efficiency | {"cpu_s": _cpu() - began}


def trl_packing(folder: Path) -> Figures:
    """TRL's best fit, called as SFTTrainer does: in batches of 1,000 rows; it moves the tokens too."""
    return _trl_packing(folder, "bfd")


def trl_wrapped(folder: Path) -> Figures:
    """TRL's other strategy: rows end to end, cut where a packed row is full."""
    return _trl_packing(folder, "wrapped")


def _trl_packing(folder: Path, strategy: str) -> Figures:
    import datasets
    import numpy as np
    import pyarrow as pa
    from trl import pack_dataset

    datasets.disable_progress_bars()

    def rows(lengths: Sequence[int]) -> datasets.Dataset:
        offsets = np.cumsum([0, *lengths], dtype=np.int32)
        column = pa.ListArray.from_arrays(offsets, np.ones(offsets[-1], np.int32))
        return datasets.Dataset(pa.table({"input_ids": column, "labels": column}))

    efficiency, million = _lengths(
        folder, lambda lengths, capacity: len(pack_dataset(rows(lengths), capacity, strategy))
    )
    million = rows(million)
    began = _cpu()
    pack_dataset(million, TIMED, strategy)
    return efficiency | {"cpu_s": _cpu() - began}


def _lengths(folder: Path, packed: Callable[[Sequence[int], int], int]) -> tuple[Figures, list[int]]:
    """How full the rows are that `packed` makes of the lengths, at each capacity; and the lengths for the clock."""
    given = json.loads((folder / LENGTHS).read_text())
    efficiency = {}
    for capacity in CAPACITIES:
        fitting = [length for length in given["rows"] if length <= capacity]
        efficiency[f"efficiency_{capacity}"] = sum(fitting) / (capacity * packed(fitting, capacity))
    return efficiency, given["drawn"]


def ours_preparation(folder: Path) -> Figures:
    """What the format stage does with the texts: render, tokenise, mask, pack."""
    from tasks.config import FormatConfig
    from tasks.encoded import Encoded
    from tasks.families.decoder_only import encode
    from tasks.format import load_tokenizer
    from tasks.ledger import read
    from tasks.packing import pack

    config = FormatConfig(max_seq_length=Task.read(folder).capacity, max_reject_ratio=1)
    tokenizer = load_tokenizer(folder / "base", "auto")
    examples = read(folder / "split" / "train").to_pylist()
    pack([1, 2, 3], 4)
    began = _cpu()
    batches = (examples[at : at + 1000] for at in range(0, len(examples), 1000))
    encoded = [each for batch in batches for each in encode(batch, tokenizer, config)]
    kept = [each for each in encoded if isinstance(each, Encoded)]
    pack([len(each.input_ids) for each in kept], config.max_seq_length)
    used = _cpu() - began
    return {"cpu_s": used, "digests": [_digest(each.input_ids, each.labels) for each in kept]}


def ours_stage(folder: Path) -> Figures:
    """The whole format stage, with reading, the ledger and writing Parquet."""
    import tasks.families.decoder_only  # noqa: F401
    from tasks.config import FormatConfig
    from tasks.format import format
    from tasks.ledger import read
    from tasks.packing import pack

    pack([1, 2, 3], 4)
    (folder / "formatted").mkdir()
    inputs = {"base": folder / "base", "split": folder / "split"}
    began = _cpu()
    format(FormatConfig(max_seq_length=Task.read(folder).capacity, max_reject_ratio=1), inputs, folder / "formatted")
    used = _cpu() - began
    rows = read(folder / "formatted" / "train", columns=["input_ids", "labels"]).to_pylist()
    return {"cpu_s": used, "digests": [_digest(row["input_ids"], row["labels"]) for row in rows]}


def tokenizer_alone(folder: Path) -> Figures:
    """The limit of all of them: the tokenizer's backend on the rendered texts, without masks or packing."""
    from tasks.format import load_tokenizer
    from tasks.ledger import read
    from tasks.templates import answer_text, messages

    tokenizer = load_tokenizer(folder / "base", "auto")
    texts = [answer_text(messages(row), tokenizer) for row in read(folder / "split" / "train").to_pylist()]
    began = _cpu()
    for at in range(0, len(texts), 1000):
        for encoding in tokenizer.backend_tokenizer.encode_batch(texts[at : at + 1000], add_special_tokens=False):
            _ = encoding.ids
    return {"cpu_s": _cpu() - began, "digests": []}


def trl_preparation(folder: Path) -> Figures:
    """SFTTrainer's preparation: packed, prompt and completion, loss over the completion."""
    from transformers import AutoTokenizer
    from trl import SFTConfig

    config = SFTConfig(
        output_dir=str(folder / "peer"),
        packing=True,
        max_length=Task.read(folder).capacity,
        report_to="none",
        use_cpu=True,
    )
    took: list[float] = []
    rows = trl_prepared(folder, AutoTokenizer.from_pretrained(folder / "tokenizer"), config, took)
    digests = [
        _digest(row["input_ids"][at : at + length], row["labels"][at : at + length])
        for row in rows
        for at, length in zip(_starts(row["seq_lengths"]), row["seq_lengths"], strict=True)
    ]
    return {"cpu_s": sum(took), "digests": digests}


def trl_prepared(folder: Path, tokenizer: Any, config: Any, took: list[float] | None = None) -> Any:
    """What SFTTrainer makes of chats.jsonl; `took` gets the CPU seconds of that."""
    import datasets
    from transformers import AutoModelForCausalLM
    from trl import SFTTrainer

    datasets.disable_progress_bars()

    class Timed(SFTTrainer):
        def _prepare_dataset(self, *arguments: Any, **named: Any) -> Any:
            began = _cpu()
            prepared = super()._prepare_dataset(*arguments, **named)
            (took if took is not None else []).append(_cpu() - began)
            return prepared

    chats = [json.loads(line) for line in (folder / "chats.jsonl").open(encoding="utf-8")]
    model = AutoModelForCausalLM.from_pretrained(folder / "base", attn_implementation="sdpa")
    trainer = Timed(
        model=model, args=config, train_dataset=datasets.Dataset.from_list(chats), processing_class=tokenizer
    )
    return trainer.train_dataset


def llamafactory_preparation(folder: Path) -> Figures:
    """LLaMA-Factory's get_dataset, packed, from a file, with a chatml that ends at the stop token."""
    import datasets
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.template import register_template
    from llamafactory.hparams import get_train_args
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    register_template(
        name="chatml_to_stop",
        format_user=StringFormatter(slots=["<|im_start|>user\n{{content}}<|im_end|>\n<|im_start|>assistant\n"]),
        format_assistant=StringFormatter(slots=["{{content}}<|im_end|>"]),
    )
    _write_for_llamafactory(folder)
    model, data, training, *_ = get_train_args(
        {
            "stage": "sft", "do_train": True, "finetuning_type": "full", "report_to": "none", "use_cpu": True,
            "model_name_or_path": str(folder / "base"), "template": "chatml_to_stop", "overwrite_cache": True,
            "output_dir": str(folder / "peer"), "dataset": "rows", "dataset_dir": str(folder),
            "cutoff_len": Task.read(folder).capacity, "packing": True, "neat_packing": True,
        }
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    template = get_template_and_fix_tokenizer(tokenizer, data)
    began = _cpu()
    rows = get_dataset(template, model, data, training, stage="sft", tokenizer=tokenizer)["train_dataset"]
    used = _cpu() - began
    digests = [_digest(row["input_ids"][a:b], row["labels"][a:b]) for row in rows for a, b in _documents(row)]
    return {"cpu_s": used, "digests": digests}


def _write_for_llamafactory(folder: Path) -> None:
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for line in (folder / "chats.jsonl").open(encoding="utf-8"):
            chat = json.loads(line)
            row = {"asked": chat["prompt"][0]["content"], "answered": chat["completion"][0]["content"]}
            file.write(json.dumps(row) + "\n")
    columns = {"prompt": "asked", "response": "answered"}
    (folder / "dataset_info.json").write_text(json.dumps({"rows": {"file_name": "rows.jsonl", "columns": columns}}))


def _documents(row: dict[str, Any]) -> list[tuple[int, int]]:
    """Where each document of LLaMA-Factory's packed row begins and ends; its mask counts them from 1."""
    mask = row["attention_mask"]
    starts = [at for at, number in enumerate(mask) if number and (at == 0 or mask[at - 1] != number)]
    ends = [*starts[1:], sum(1 for number in mask if number)]
    return list(zip(starts, ends, strict=True))


SYSTEMS: dict[str, dict[str, tuple[str, Callable[[Path], Figures]]]] = {
    "packing": {
        "attune": ("attune", ours_packing),
        "trl-bfd": ("trl", trl_packing),
        "trl-wrapped": ("trl", trl_wrapped),
    },
    "preparation": {
        "attune": ("attune", ours_preparation),
        "attune-stage": ("attune", ours_stage),
        "tokenizer-alone": ("tokenizers", tokenizer_alone),
        "trl": ("trl", trl_preparation),
        "llamafactory": ("llamafactory", llamafactory_preparation),
    },
}
"""Work -> system -> the package that it is in, and what measures it."""


def _starts(lengths: Sequence[int]) -> list[int]:
    return [sum(lengths[:at]) for at in range(len(lengths))]


def _digest(ids: Sequence[int], labels: Sequence[int]) -> str:
    return hashlib.sha256(json.dumps([list(ids), list(labels)]).encode()).hexdigest()[:16]


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main(work: str, system: str, folder: str) -> None:
    """Do the work, and say what it took."""
    package, measure = SYSTEMS[work][system]
    figures = {"version": importlib.metadata.version(package), **measure(Path(folder))}
    (Path(folder) / FIGURES).write_text(json.dumps(figures))


if __name__ == "__main__":
    main(*sys.argv[1:])
