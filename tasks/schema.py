"""Arrow schemas and column names of each artifact."""

import pyarrow as pa

IGNORE_INDEX = -100
"""The label of a token that is not supervised, as torch's cross-entropy knows it."""

PLACE = ("source", "file", "line")
"""The columns that say where a row was read."""

TURN = pa.struct(
    [
        ("role", pa.string()),  # system, user, assistant or tool
        ("content", pa.string()),
        ("tool_calls", pa.string()),  # of an assistant's turn: JSON list of {"name", "arguments"}, or ""
    ]
)

EXAMPLE = pa.schema(
    [
        ("id", pa.string()),  # hash of the content: equal examples have equal ids
        ("source", pa.string()),  # name of the source it was read from
        ("file", pa.string()),  # file of that source, relative to its folder
        ("line", pa.int64()),  # line in that file, from 1; the row's number where there are no lines
        ("task", pa.string()),
        ("group", pa.string()),  # examples of one group never straddle two splits
        ("split", pa.string()),  # the split its source is bound to, or ""
        ("system", pa.string()),
        ("history", pa.list_(TURN)),  # the turns before the instruction
        ("instruction", pa.string()),
        ("input", pa.string()),
        ("tool_turns", pa.list_(TURN)),  # tool calls and their results between the instruction and the output
        ("output", pa.string()),
        ("tool_calls", pa.string()),  # of the output: JSON list of {"name", "arguments"}, or ""
        ("tools", pa.string()),  # JSON list of the tools on offer, or ""
        ("label", pa.string()),
    ]
)
"""What collect, clean and split keep; split files it by train, validation and test."""

REJECTED = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("id", pa.string()),  # "" where the row never became an example
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("row", pa.string()),  # the row as read, or what else the example holds as JSON, cut at ledger.ROW_CHARS
    ]
)
"""Every rejected row of a stage, with its reason and its place."""

REPAIRED = pa.schema(
    [
        ("source", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("id", pa.string()),
        ("repair", pa.string()),
        ("column", pa.string()),
        ("before", pa.string()),
        ("after", pa.string()),
    ]
)
"""Texts that clean changed: all are counted in the manifest, the first of each repair stand here."""

TOKENIZED = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("file", pa.string()),
        ("line", pa.int64()),
        ("task", pa.string()),
        ("input_ids", pa.list_(pa.int32())),  # decoder-only: the whole conversation; else what the encoder reads
        ("labels", pa.list_(pa.int32())),  # decoder-only: input_ids where supervised, IGNORE_INDEX elsewhere;
        # encoder-decoder: the answer; classifier: the number of its class, alone
        ("prompt_tokens", pa.int32()),  # input_ids[:prompt_tokens] is what the model is asked with
        ("truncated", pa.bool_()),  # something of it was cut off to fit max_seq_length
    ]
)
"""What format keeps, filed by train, validation and test."""

PACKS = pa.schema([("pack", pa.int32())])
"""For each row of format's train, in order, the packed row that it is trained in; only where rows are packed."""

HISTORY = pa.schema(
    [
        ("system", pa.string()),  # tuned or scratch
        ("step", pa.int64()),  # optimizer steps done
        ("epoch", pa.float64()),
        ("loss", pa.float64()),  # mean training loss per supervised token of the step
        ("validation_loss", pa.float64()),  # mean per supervised token over the validation split
        ("validation_metric", pa.float64()),  # metric_for_best_model, where that is not the loss
        ("learning_rate", pa.float64()),
        ("grad_norm", pa.float64()),  # before clipping
    ]
)
"""What fine_tune recorded while training; null where a record does not hold that figure."""

PREDICTION = pa.schema(
    [
        ("id", pa.string()),
        ("source", pa.string()),
        ("task", pa.string()),
        ("system", pa.string()),  # base, scratch or tuned
        ("prompt", pa.string()),
        ("reference", pa.string()),
        ("prediction", pa.string()),
        ("supervised_tokens", pa.int64()),
        ("loss", pa.float64()),  # mean over the example's supervised tokens, in nats
        ("scores", pa.map_(pa.string(), pa.float64())),  # metric -> value for this answer
    ]
)
"""One answer of one system to one row of the test split."""
