"""The seven stages: what each reads, and what beside its settings decides its result.

A stage `name` is the function `name` in the module `tasks.<name>`, sees the config section `name`, and leaves artifacts
in the folder `name`.  Its signature is `stage(config, inputs, out) -> Summary`: `inputs` maps the names in
`Stage.inputs` (and `base`) to folders, `out` is the folder to write into.  A stage that reads the base model gets its
`family` as well.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from tasks.ledger import Summary


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline."""

    name: str
    inputs: tuple[str, ...]  # the stages whose artifacts it reads
    base: Literal["", "tokenizer", "model"]  # what of the base model it reads
    versions: tuple[str, ...]  # the libraries whose version decides its result
    remembers: bool = False  # reads its own last artifact of the same pipeline and settings

    @property
    def module(self) -> str:
        """The module that holds its function."""
        return f"tasks.{self.name}"

    @property
    def function(self) -> "Callable[..., Summary]":
        """Its function; importing it is what costs time, so it is done only where a stage runs."""
        return getattr(importlib.import_module(self.module), self.name)


STAGES = {
    stage.name: stage
    for stage in (
        Stage("collect", (), "", ("pyarrow",)),
        Stage(
            "clean",
            ("collect",),
            "",
            ("pyarrow", "pandas", "numpy", "ftfy", "tokenizers", "py3langid", "phonenumbers", "python-stdnum"),
        ),
        Stage("split", ("clean",), "", ("pyarrow", "numpy"), remembers=True),
        Stage("format", ("split",), "tokenizer", ("pyarrow", "transformers", "tokenizers")),
        Stage("fine_tune", ("format",), "model", ("torch", "transformers", "accelerate", "peft")),
        Stage(
            "evaluate",
            ("split", "format", "fine_tune"),
            "model",
            ("torch", "transformers", "evaluate", "rouge-score", "scikit-learn"),
        ),
        Stage(
            "export",
            ("collect", "clean", "split", "format", "fine_tune", "evaluate"),
            "",
            ("torch", "transformers", "safetensors"),
        ),
    )
}
"""In the order in which they run."""
