"""One system that trains, in its own process and interpreter: python training_systems.py SYSTEM FOLDER

FOLDER holds what training_inputs writes, and task.json.  The process says on standard output that it has warmed up, one
JSON object, then waits: each line on standard input lets it train for a round, and it answers with the figures of that
round.  So systems take turns, and imports and preparation do not count.  It ends when standard input does.

Every system trains through its users' interface.  What is measured is measured at two places that all of them pass: the
embedding, which gets every batch, and the step of the optimizer.
"""

import importlib.metadata
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torch.optim.optimizer import register_optimizer_step_post_hook
from training_turns import Task

MANY = 1_000_000
"""Optimizer steps: nobody gets there."""

PADDING = 0
LEARNING_RATE = 1e-4
CLIPPED_TO = 1.0
LORA = {"r": 16, "lora_alpha": 32, "target_modules": "all-linear"}


class Pace:
    """Counts tokens and steps, and halts between rounds."""

    def __init__(self, task: Task, package: str) -> None:
        self.task, self.version = task, importlib.metadata.version(package)
        self.steps, self.seen = 0, False
        self.tokens = torch.zeros((), dtype=torch.int64)
        self.answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no answer

    def begin(self) -> None:
        """To be called when everything is imported and read, and the model is not yet built."""
        self.before_mib = _status_mib("VmRSS")
        nn.modules.module.register_module_forward_pre_hook(self._before_module)
        register_optimizer_step_post_hook(self._after_step)

    def _before_module(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if not isinstance(module, nn.Embedding) or not module.training or isinstance(arguments[0], FakeTensor):
            return  # tensors without content are of the forecast of what a training costs
        if not self.seen:
            self.seen = True
            _forget_peak()
        self.tokens = self.tokens.to(arguments[0].device) + (arguments[0] != PADDING).sum()

    def _after_step(self, *_: object) -> None:
        self.steps += 1
        since = self.steps - self.task.warm_up
        if since == 0:
            self._answer({"version": self.version})
        elif since > 0 and since % self.task.steps == 0:
            self._answer(self._figures())

    def _answer(self, figures: dict[str, Any]) -> None:
        """Say the figures and wait for the next round."""
        print(json.dumps(figures), file=self.answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # in the middle of a training that has no end
        self.tokens.zero_()
        self.wall, self.cpu = time.perf_counter(), _cpu()

    def _figures(self) -> dict[str, float]:
        tokens = int(self.tokens)  # waits for the GPU
        return {
            "tokens": tokens,
            "tokens_per_step": tokens / self.task.steps,
            "wall_s": time.perf_counter() - self.wall,
            "cpu_s": _cpu() - self.cpu,
            "peak_mib": _status_mib("VmHWM"),
            "above_mib": _status_mib("VmHWM") - self.before_mib,
            "gpu_mib": torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else 0.0,
        }


def ours(task: Task, folder: Path, pace: Pace) -> None:
    """The fine_tune stage, on what the format stage left."""
    import tasks.families.decoder_only  # noqa: F401
    from tasks.config import FineTuneConfig
    from tasks.fine_tune import fine_tune

    config = FineTuneConfig(
        method=task.method,
        per_device_batch_size=task.packed_rows,
        max_steps=MANY,
        evals_per_epoch=1,
        early_stopping_patience=0,
        learning_rate=LEARNING_RATE,
        max_grad_norm=CLIPPED_TO,
        precision="bf16",
    )
    (folder / "tuned").mkdir()
    pace.begin()
    fine_tune(config, {"base": folder / "model", "format": folder / "format"}, folder / "tuned")


def bare_loop(task: Task, folder: Path, pace: Pace) -> None:
    """Plain PyTorch on attune's packed rows: all logits at once, and nothing else that a trainer does."""
    rows = _packed(folder)
    pace.begin()
    model = _model(folder).to(_device()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    for batch in _batches(rows, task.packed_rows):
        labels = batch.pop("labels")
        with torch.autocast(_device(), torch.bfloat16):
            logits = model(**batch, use_cache=False).logits
        functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIPPED_TO)
        optimizer.step()
        optimizer.zero_grad()


def trainer_packed(task: Task, folder: Path, pace: Pace) -> None:
    """transformers.Trainer on attune's packed rows."""
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments

    rows = Dataset.from_list(_packed(folder))
    pace.begin()
    arguments = TrainingArguments(**_arguments(task, folder), per_device_train_batch_size=task.packed_rows)
    Trainer(model=_model(folder), args=arguments, train_dataset=rows, data_collator=_padded).train()


def trainer_padded(task: Task, folder: Path, pace: Pace) -> None:
    """transformers.Trainer with a row an example, padded to the longest of its batch."""
    import pyarrow.parquet as pq
    from datasets import Dataset
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    rows = Dataset(pq.read_table(folder / "format" / "train", columns=["input_ids", "labels"]))
    collator = DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(folder / "tokenizer"))
    pace.begin()
    arguments = TrainingArguments(**_arguments(task, folder), per_device_train_batch_size=task.examples)
    Trainer(model=_model(folder), args=arguments, train_dataset=rows, data_collator=collator).train()


def trl_packed(task: Task, folder: Path, pace: Pace) -> None:
    """TRL's SFTTrainer, which lays the packed rows of a batch end to end."""
    _trl(task, folder, pace, packing=True, per_device_train_batch_size=task.packed_rows)


def trl_packed_rows(task: Task, folder: Path, pace: Pace) -> None:
    """The same with one packed row at a time: attention over short rows is cheaper where it is not written for many."""
    accumulated = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": task.packed_rows}
    _trl(task, folder, pace, packing=True, **accumulated)


def trl_padded(task: Task, folder: Path, pace: Pace) -> None:
    """TRL's SFTTrainer with a row an example."""
    _trl(task, folder, pace, packing=False, per_device_train_batch_size=task.examples)


def _trl(task: Task, folder: Path, pace: Pace, **more: Any) -> None:
    """Prompt and completion, and a loss over the completion only: the tokens that attune supervises."""
    from peft import LoraConfig
    from training_preparation import trl_prepared
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    common = {**_arguments(task, folder), **more, "gradient_checkpointing": False, "max_length": task.capacity}
    rows = trl_prepared(folder, tokenizer, SFTConfig(**common))
    pace.begin()
    SFTTrainer(
        model=_model(folder, torch.bfloat16 if task.method == "lora" else torch.float32),
        args=SFTConfig(**common, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=rows,
        processing_class=tokenizer,
        peft_config=LoraConfig(**LORA, task_type="CAUSAL_LM") if task.method == "lora" else None,
    ).train()


SYSTEMS: dict[str, tuple[str, Callable[[Task, Path, Pace], None]]] = {
    "attune": ("attune", ours),
    "bare-loop": ("torch", bare_loop),
    "trainer-packed": ("transformers", trainer_packed),
    "trainer-padded": ("transformers", trainer_padded),
    "trl-packed": ("trl", trl_packed),
    "trl-packed-rows": ("trl", trl_packed_rows),
    "trl-padded": ("trl", trl_padded),
}
"""System -> the package that it is in, and what trains without an end."""


def _arguments(task: Task, folder: Path) -> dict[str, Any]:
    """What every trainer is told."""
    return {
        "output_dir": str(folder / "peer"),
        "max_steps": MANY,
        "learning_rate": LEARNING_RATE,
        "max_grad_norm": CLIPPED_TO,
        "bf16": True,
        "use_cpu": _device() == "cpu",
        "logging_steps": MANY,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": _device() == "cuda",
    }


def _model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import is_flash_attn_2_available

    attention = "flash_attention_2" if is_flash_attn_2_available() else "sdpa"
    return AutoModelForCausalLM.from_pretrained(folder / "model", dtype=dtype, attn_implementation=attention)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _packed(folder: Path) -> list[dict[str, list[int]]]:
    import pyarrow.parquet as pq

    return pq.read_table(folder / "packed.parquet").to_pylist()


def _padded(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Right-padded to one length; a padding token is at position 0, which makes it a document of its own."""
    fill = {"input_ids": PADDING, "labels": -100, "position_ids": 0}
    return {
        name: pad_sequence([torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=value)
        for name, value in fill.items()
    }


def _batches(rows: list[dict[str, list[int]]], size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches in a new order each time round, without an end."""
    while True:
        for chosen in torch.randperm(len(rows)).split(size):
            if len(chosen) == min(size, len(rows)):
                yield {name: each.to(_device()) for name, each in _padded([rows[i] for i in chosen]).items()}


def _status_mib(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) / 1024


def _forget_peak() -> None:
    """From now on VmHWM is the peak of what follows: what was done to read and prepare does not count."""
    Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main(system: str, folder: str) -> NoReturn:
    """Train until nobody asks for another round."""
    package, train = SYSTEMS[system]
    pace = Pace(Task.read(Path(folder)), package)
    torch.manual_seed(0)
    train(pace.task, Path(folder), pace)
    raise SystemExit(f"{system} ended after {pace.steps} steps")


if __name__ == "__main__":
    main(*sys.argv[1:])
