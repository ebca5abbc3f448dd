"""Training beside what people use for it: python benchmarks/training.py

Four works, each by every system on the same rows:
- training: one model of random weights; useful tokens, which are those that are not padding, per second;
- memory: peak memory of a few steps with a vocabulary of 151,936;
- packing: how full the packed rows are, and what one million lengths cost;
- preparation: from texts to packed rows of tokens and labels; and whether these are attune's own.

The training systems are processes that take turns: every round is a few steps of each, one system after the other.
Prints one JSON object a line (`work`, `system`, `value`, `unit`, `ratio_to_ours`), then tables.  Figures are medians
over the rounds; ours as a multiple of a system's is the median of the ratios within each round.  A system that is not
installed is named as not measured.  With --gpu only training is measured, of Qwen3-0.6B and 1.7B with random weights.
"""

import argparse
import itertools
import json
import os
import platform
import random
import shutil
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from training_turns import OURS, PEERS, Machine, Measured, Task, run_each, take_turns

from data import print_line, processor

ALPACA = Path(__file__).parent.parent.parent / "shared" / "data" / "alpaca-5k.jsonl"
PEERS_OF_OURS = ("bare-loop", "trainer-packed", "trainer-padded")
SYSTEMS = {
    "training": (OURS, *PEERS_OF_OURS, "trl-packed", "trl-packed-rows", "trl-padded"),
    "memory": (OURS, "bare-loop", "trl-packed"),
    "packing": (OURS, "trl-bfd", "trl-wrapped"),
    "preparation": (OURS, "attune-stage", "tokenizer-alone", "trl", "llamafactory"),
}
EVERY = tuple(dict.fromkeys(itertools.chain.from_iterable(SYSTEMS.values())))

MEMORY_VOCABULARY, MEMORY_LAYERS = 151_936, 4
GPU_SHAPES, GPU_METHODS, GPU_SYSTEMS = ("0.6B", "1.7B"), ("lora", "full"), (OURS, "trl-packed")

UNITS = {
    "tokens_per_s": "useful tokens/s",
    "tokens_per_cpu_s": "useful tokens/CPU s",
    "tokens_per_step": "useful tokens/step",
    "above_mib": "MiB above the start",
    "peak_mib": "MiB at peak",
    "gpu_mib": "MiB of the GPU at peak",
    "utilisation": "of the peak FLOP/s",
    "lengths_per_cpu_s": "lengths/CPU s",
    "efficiency_512": "of 512 places filled",
    "efficiency_1024": "of 1,024 places filled",
    "efficiency_2048": "of 2,048 places filled",
    "rows_per_cpu_s": "rows/CPU s",
    "cpu_s": "CPU s",
    "same": "of the rows as ours",
}
DECIMALS = {"utilisation": 3, "efficiency_512": 4, "efficiency_1024": 4, "efficiency_2048": 4, "cpu_s": 3, "same": 4}


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print."""
    options = _options(arguments)
    print(f"{processor()}, {os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}")
    works = {"training": _training, "memory": _memory, "packing": _packing, "preparation": _preparation}
    for measure in [_gpu] if options.gpu else [works[name] for name in options.works]:
        measure(options)


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--works", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), help="which are measured")
    add("--systems", nargs="+", default=EVERY, choices=EVERY, help="which take part; ours always does")
    add("--python", action="append", default=[], metavar="PACKAGE=PATH", help="interpreter of trl or llamafactory")
    add("--rows-from", type=Path, default=ALPACA if ALPACA.exists() else None, help="JSON Lines as Alpaca's")
    add("--rows", type=int, default=5_000, help="how many are trained on, and packed")
    add("--prepared-rows", type=int, default=10_000, help="how many are prepared")
    add("--lengths", type=int, default=1_000_000, help="how many are packed against the clock")
    add("--capacity", type=int, default=512, help="tokens in a packed row")
    add("--packed-rows", type=int, default=4, help="packed rows in a step; padded systems get as many tokens")
    add("--hidden", type=int, default=256, help="width of the models")
    add("--layers", type=int, default=9, help="layers of the model that is timed")
    add("--vocabulary", type=int, default=10_240, help="of the model that is timed")
    add("--warm-up", type=int, default=3, help="steps before the first round")
    add("--steps", type=int, default=6, help="steps in a round")
    add("--rounds", type=int, default=5, help="rounds of each system")
    add("--threads", type=int, default=2, help="threads of each system")
    add("--gpu", action="store_true", help="measure training on the GPU, and nothing else")
    add("--peak-tflops", type=float, default=790.0, help="of the GPU, dense bf16")
    add("--folder", type=Path, help="where scratch files go")
    options = parser.parse_args(arguments)
    options.python = dict(each.partition("=")[::2] for each in options.python)
    for package, path in options.python.items():
        if package not in PEERS or shutil.which(path) is None:
            parser.error(f"--python {package}: no interpreter of {' or '.join(PEERS)} at {path!r}")
    options.machine = Machine(options.threads, options.python)
    return options


def _training(options: argparse.Namespace) -> None:
    import training_inputs

    sizes = training_inputs.small(options.hidden, options.layers, options.vocabulary)
    title = f"training, {options.packed_rows} × {options.capacity} tokens a step, {options.threads} threads"
    measured, _ = _trained(title, _systems("training", options), sizes, options.rounds, options)
    _print(title, measured, ("tokens_per_s", "tokens_per_cpu_s", "tokens_per_step", "above_mib", "peak_mib"))


def _memory(options: argparse.Namespace) -> None:
    import training_inputs

    sizes = training_inputs.small(options.hidden, MEMORY_LAYERS, MEMORY_VOCABULARY)
    title = f"memory, {options.packed_rows} × {options.capacity} tokens a step, vocabulary {MEMORY_VOCABULARY:,}"
    measured, _ = _trained(title, _systems("memory", options), sizes, 1, options)
    _print(title, measured, ("above_mib", "peak_mib", "tokens_per_step"))


def _gpu(options: argparse.Namespace) -> None:
    import torch
    import training_inputs

    if not torch.cuda.is_available():
        raise SystemExit("--gpu: torch sees no CUDA device")
    for shape, method in itertools.product(GPU_SHAPES, GPU_METHODS):
        sizes = training_inputs.large(shape)
        title = f"training of {shape}, {method}, {options.packed_rows} × {options.capacity} tokens a step"
        systems = [name for name in GPU_SYSTEMS if name in _systems("training", options)]
        measured, lengths = _trained(title, systems, sizes, options.rounds, options, method)
        flops = flops_per_token(sizes, lengths, method)
        for each in itertools.chain.from_iterable(found.rounds for found in measured):
            each["utilisation"] = each["tokens_per_s"] * flops / (options.peak_tflops * 1e12)
        _print(title, measured, ("tokens_per_s", "utilisation", "gpu_mib", "tokens_per_step"))


def _trained(
    title: str,
    systems: Sequence[str],
    sizes: dict[str, Any],
    rounds: int,
    options: argparse.Namespace,
    method: str = "full",
) -> tuple[list[Measured], list[int]]:
    """What the systems did, and the lengths of the rows in tokens."""
    import training_inputs

    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch) / "shared"
        lengths = training_inputs.make_rows(folder, _rows(options, options.rows), options.capacity, options.vocabulary)
        training_inputs.make_model(folder, sizes)
        examples = max(1, round(options.packed_rows * options.capacity / statistics.fmean(lengths)))
        task = Task(options.capacity, options.packed_rows, examples, options.warm_up, options.steps, method)
        task.write(folder)
        return take_turns(title, systems, rounds, folder, options.machine), lengths


def flops_per_token(sizes: dict[str, Any], lengths: Sequence[int], method: str) -> float:
    """Floating-point operations of the model itself for a token of training, nothing computed twice.

    6 for each weight: 2 forward, 2 backward to what went in, 2 to the weight, without which the base of an adapter
    does.  Attention needs 12 for each layer, unit of width and token that is looked at; a token looks at half of its
    example on average, and more tokens stand in long examples.
    """
    width = sizes["num_attention_heads"] * sizes["head_dim"]
    looked_at = sum(length**2 for length in lengths) / sum(lengths) / 2
    return (4 if method == "lora" else 6) * parameters(sizes) + 12 * sizes["num_hidden_layers"] * width * looked_at


def parameters(sizes: dict[str, Any]) -> int:
    """Weights of a Qwen3 with tied embeddings, without its norms."""
    hidden = sizes["hidden_size"]
    attention = 2 * hidden * sizes["head_dim"] * (sizes["num_attention_heads"] + sizes["num_key_value_heads"])
    layer = attention + 3 * hidden * sizes["intermediate_size"]
    return sizes["vocab_size"] * hidden + sizes["num_hidden_layers"] * layer


def _packing(options: argparse.Namespace) -> None:
    import training_inputs
    from training_preparation import CAPACITIES, LENGTHS, TIMED

    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch) / "shared"
        lengths = training_inputs.make_rows(folder, _rows(options, options.rows), max(CAPACITIES), options.vocabulary)
        drawn = random.Random(0).choices([each for each in lengths if each <= min(CAPACITIES)], k=options.lengths)  # noqa: S311
        (folder / LENGTHS).write_text(json.dumps({"rows": lengths, "drawn": drawn}))
        title = f"packing of {len(lengths):,} lengths, and of {options.lengths:,} into {TIMED}"
        measured = run_each("packing", title, _systems("packing", options), options.rounds, folder, options.machine)
    for each in itertools.chain.from_iterable(found.rounds for found in measured):
        each["lengths_per_cpu_s"] = options.lengths / each["cpu_s"]
    _print(title, measured, ("lengths_per_cpu_s", "cpu_s", *(f"efficiency_{capacity}" for capacity in CAPACITIES)))


def _preparation(options: argparse.Namespace) -> None:
    import training_inputs

    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        folder = Path(scratch) / "shared"
        taken = _rows(options, options.prepared_rows)
        lengths = training_inputs.make_rows(folder, taken, options.capacity, options.vocabulary)
        Task(options.capacity, 1, 1, 0, 0).write(folder)
        title, systems = f"preparation of {len(lengths):,} rows", _systems("preparation", options)
        measured = run_each("preparation", title, systems, options.rounds, folder, options.machine)
    ours = measured[0].rounds[0]["digests"]
    for each in itertools.chain.from_iterable(found.rounds for found in measured):
        each["rows_per_cpu_s"] = len(lengths) / each["cpu_s"]
        each["same"] = shared(each["digests"], ours)
    _print(title, measured, ("rows_per_cpu_s", "cpu_s", "same"))


def shared(rows: Sequence[str], ours: Sequence[str]) -> float:
    """The share of rows that both have, as often as both have them, of the larger number of rows."""
    return (Counter(rows) & Counter(ours)).total() / max(len(rows), len(ours))


def _systems(work: str, options: argparse.Namespace) -> list[str]:
    """Ours, which has to come first, and those that were asked for."""
    return [name for name in SYSTEMS[work] if name == OURS or name in options.systems]


def _rows(options: argparse.Namespace, count: int) -> list[dict[str, str]]:
    """As many rows as asked for; a file that has fewer is read again from its beginning."""
    import rows

    found = rows.make(count) if options.rows_from is None else itertools.cycle(rows.read(options.rows_from))
    return list(itertools.islice(found, count))


def _print(title: str, measured: Sequence[Measured], names: Sequence[str]) -> None:
    """Lines and a table; of the first of `names` also the range, and ours as a multiple of the system's."""
    ours = measured[0]
    for each in measured:
        system = f"{each.system} {each.version}"
        for name in names:
            ratio = each.median(name) / ours.median(name) if ours.median(name) else None
            print_line(title, system, each.median(name), UNITS[name], ratio)
        for word, value in zip(("least", "median", "most"), multiples(ours, each, names[0]), strict=True):
            print_line(title, system, value, f"ours as a multiple of its {UNITS[names[0]]}, {word}", None)
    _print_table(title, measured, names)


def multiples(ours: Measured, theirs: Measured, name: str) -> tuple[float, float, float]:
    """Our figure over theirs, each round by itself: the least, the median and the most."""
    ratios = sorted(a[name] / b[name] for a, b in zip(ours.rounds, theirs.rounds, strict=True))
    return ratios[0], statistics.median(ratios), ratios[-1]


def _print_table(title: str, measured: Sequence[Measured], names: Sequence[str]) -> None:
    heads = "".join(f" {UNITS[name]:>{_width(name)}}" for name in names)
    print(f"\n{title}\n{'':28}{heads}  least to most        ours is × (least to most)")
    for each in measured:
        values = "".join(f" {each.median(name):>{_width(name)},.{DECIMALS.get(name, 0)}f}" for name in names)
        found = [figures[names[0]] for figures in each.rounds]
        spread = f"{min(found):,.{DECIMALS.get(names[0], 0)}f}–{max(found):,.{DECIMALS.get(names[0], 0)}f}"
        least, median, most = multiples(measured[0], each, names[0])
        print(f"{each.system + ' ' + each.version:28}{values}  {spread:20} {median:.2f} ({least:.2f}–{most:.2f})")
    print(flush=True)


def _width(name: str) -> int:
    return max(10, len(UNITS[name]))


if __name__ == "__main__":
    main()
