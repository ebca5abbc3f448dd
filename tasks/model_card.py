"""The model card: what the model was made from, how well it answers, and the lineage of every stage."""

from pathlib import Path
from typing import Any

from tasks.store import Manifest, read_manifest

HOW_TO_RUN = """## How to run

```python
from transformers import pipeline

ask = pipeline("text-generation", model="PATH OF THIS FOLDER")
print(ask([{"role": "user", "content": "…"}], return_full_text=False)[0]["generated_text"])
```
"""

LIMITS = """## Limits

It knows what its base model and the data above taught it, and has been judged on the test split alone. No safety tuning
took place.
"""


def model_card(inputs: dict[str, Path], parity_rows: int) -> str:
    """The card in Markdown, from the manifests of all stages before export."""
    manifests = {name: read_manifest(inputs[name]) for name in inputs}
    title = "# Model card\n\nTuned on instructions by attune, from the checkpoint with the lowest validation loss.\n"
    parity = f"Before publication it answered {parity_rows} test rows with the same tokens as the evaluated model.\n"
    results = "\n".join(["## Results on the test split\n", *_results(manifests["evaluate"].figures["evaluation"])])
    sections = [title, HOW_TO_RUN, results, "", parity, _data(manifests), _training(manifests["fine_tune"])]
    return "\n".join([*sections, LIMITS, _lineage(manifests)])


def _data(manifests: dict[str, Manifest]) -> str:
    collect, train = manifests["collect"], manifests["format"].figures["train"]
    return "\n".join(
        [
            "## Data",
            "",
            "| source | SHA-256 |",
            "|---|---|",
            *(f"| {name.removeprefix('source ')} | `{digest}` |" for name, digest in collect.inputs.items()),
            "",
            f"{collect.rows_in} rows read, {train['rows']} examples trained on, "
            f"{train['supervised_tokens']} supervised tokens.",
            "",
        ]
    )


def _training(fine_tune: Manifest) -> str:
    tuned = fine_tune.figures["tuned"]
    return "\n".join(
        [
            "## Training",
            "",
            f"Step {tuned['best_step']} of {tuned['steps']}, validation loss {tuned['best_validation_loss']:.4f}.",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in fine_tune.settings.items()),
            "",
        ]
    )


def _lineage(manifests: dict[str, Manifest]) -> str:
    return "\n".join(
        [
            "## Lineage",
            "",
            "| stage | key | content digest | rows in | kept | rejected |",
            "|---|---|---|---|---|---|",
            *(_lineage_row(manifest) for manifest in manifests.values()),
            f"| base model | | `{manifests['fine_tune'].inputs['base model']}` | | | |",
            "",
        ]
    )


def _results(evaluation: dict[str, Any]) -> list[str]:
    names = list(next(iter(evaluation.values()))["test"])
    parts = [part for part in evaluation["tuned"] if not part.startswith("task:")]
    lines = [f"| system | part | rows | {' | '.join(names)} |", "|---|---|---|" + "---|" * len(names)]
    for system, table in evaluation.items():
        for part in parts:
            values = " | ".join(f"{table[part][name]['value']:.3f}" for name in names)
            lines.append(f"| {system} | {part} | {table[part][names[0]]['rows']} | {values} |")
    return lines


def _lineage_row(manifest: Manifest) -> str:
    rejected = ", ".join(f"{reason} {rows}" for reason, rows in manifest.rejected.items()) or "0"
    return (
        f"| {manifest.stage} | `{manifest.key}` | `{manifest.digest[:16]}` "
        f"| {manifest.rows_in} | {manifest.rows_kept} | {rejected} |"
    )
