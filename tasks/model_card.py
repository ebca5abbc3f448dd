"""The model card: what the model was made from, how well it answers, and the lineage of every stage."""

from pathlib import Path
from typing import Any

from tasks.store import Manifest, read_manifest


def model_card(inputs: dict[str, Path], parity_rows: int) -> str:
    """The card in Markdown, from the manifests of all stages before export."""
    manifests = {name: read_manifest(inputs[name]) for name in inputs}
    sources = manifests["collect"].settings["sources"]
    fine_tune = manifests["fine_tune"]
    return "\n".join(
        [
            "# Model card",
            "",
            "Tuned on instructions by attune. The weights are the checkpoint with the lowest validation loss.",
            "",
            "## How to run",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            'ask = pipeline("text-generation", model="PATH OF THIS FOLDER")',
            'print(ask([{"role": "user", "content": "…"}], return_full_text=False)[0]["generated_text"])',
            "```",
            "",
            "## Results on the test split",
            "",
            *_results(manifests["evaluate"].figures["evaluation"]),
            "",
            f"Before it was published, the export answered {parity_rows} test rows "
            "with the same tokens as the evaluated model.",
            "",
            "## Data",
            "",
            "| source | SHA-256 |",
            "|---|---|",
            *(
                f"| {name.removeprefix('source ')} | `{digest}` |"
                for name, digest in manifests["collect"].inputs.items()
            ),
            "",
            f"{len(sources)} sources, {manifests['collect'].rows_in} rows read; "
            f"{manifests['format'].figures['train']['rows']} examples trained on, "
            f"{manifests['format'].figures['train']['supervised_tokens']} supervised tokens.",
            "",
            "## Training",
            "",
            f"Best step {fine_tune.figures['tuned']['best_step']} of {fine_tune.figures['tuned']['steps']}, "
            f"validation loss {fine_tune.figures['tuned']['best_validation_loss']:.4f}.",
            "",
            "| setting | value |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in fine_tune.settings.items()),
            "",
            "## Limits",
            "",
            "It knows what its base model and the data above taught it, and has been judged on the test split alone. "
            "No safety tuning took place.",
            "",
            "## Lineage",
            "",
            "| stage | key | content digest | rows in | kept | rejected |",
            "|---|---|---|---|---|---|",
            *(_lineage(manifest) for manifest in manifests.values()),
            f"| base model | | `{fine_tune.inputs['base model']}` | | | |",
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


def _lineage(manifest: Manifest) -> str:
    rejected = ", ".join(f"{reason} {rows}" for reason, rows in manifest.rejected.items()) or "0"
    return (
        f"| {manifest.stage} | `{manifest.key}` | `{manifest.digest[:16]}` "
        f"| {manifest.rows_in} | {manifest.rows_kept} | {rejected} |"
    )
