"""The model card: what the model was made from, how well it answers, and the lineage of every stage."""

from pathlib import Path
from typing import Any

from tasks.held_out import class_names
from tasks.store import Manifest, read_manifest

HOW_TO_RUN = {
    "decoder_only": """from transformers import pipeline

ask = pipeline("text-generation", model="PATH OF THIS FOLDER")
print(ask([{"role": "user", "content": "…"}], return_full_text=False)[0]["generated_text"])""",
    "encoder_decoder": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("PATH OF THIS FOLDER")
model = AutoModelForSeq2SeqLM.from_pretrained("PATH OF THIS FOLDER")
chat = [{"role": "user", "content": "…"}]
asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
answer = model.generate(asked["input_ids"], attention_mask=asked["attention_mask"])
print(tokenizer.decode(answer[0], skip_special_tokens=True))""",
    "encoder_classifier": """from transformers import pipeline

classify = pipeline("text-classification", model="PATH OF THIS FOLDER")
print(classify("…"))""",
}
"""Python for each family."""

KINDS = {
    "decoder_only": "a decoder-only language model",
    "encoder_decoder": "an encoder-decoder language model",
    "encoder_classifier": "an encoder with a classification head",
}

LIMITS = """## Limits

It knows what its base model and the data above taught it, and has been judged on the test split alone. No safety tuning
took place.
"""


def model_card(inputs: dict[str, Path], parity_rows: int) -> str:
    """The card in Markdown, from the manifests of all stages before export."""
    manifests = {name: read_manifest(inputs[name]) for name in inputs}
    family, labels = manifests["fine_tune"].inputs["family"], class_names(inputs["format"])
    title = f"# Model card\n\nTuned on instructions by attune: {KINDS[family]} (family `{family}`).\n"
    how = f"## How to run\n\n```python\n{HOW_TO_RUN[family]}\n```\n"
    results = "\n".join(["## Results on the test split\n", *_results(manifests["evaluate"].figures["evaluation"])])
    parity = f"Before publication it answered {parity_rows} test rows as the evaluated model did.\n"
    sections = [title, *_labels(labels), how, results, "", parity, _data(manifests), _training(manifests["fine_tune"])]
    return "\n".join([*sections, LIMITS, _lineage(manifests)])


def _labels(labels: list[str]) -> list[str]:
    """What a classifier tells apart, and what its base is."""
    if not labels:
        return []
    names = ", ".join(f"`{label}`" for label in labels)
    return [
        f"It tells {len(labels)} labels apart: {names}.\n",
        "In the table, `base` is the base model with a head for these labels.  A base that does not bring one gets "
        "random weights there, so it shows chance.\n",
    ]


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
            f"Step {tuned['best_step']} of {tuned['steps']}, the best of the validations by "
            f"{fine_tune.settings['metric_for_best_model']}: {tuned['best_value']:.4f}.",
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
