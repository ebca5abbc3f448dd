"""How many near-duplicates are found, measured on planted pairs and beside theory: python benchmarks/recall_curve.py

Prints one JSON object a line and draws docs/recall.svg.  A pair counts as found when its two texts are compared;
whether they are similar enough is then computed exactly.
"""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa

from tasks.config import Similarity
from tasks.near_duplicates import band_keys, bands_for, jaccard
from tasks.shingles import shingles

FIGURE = Path(__file__).parent.parent / "docs" / "recall.svg"
THRESHOLDS = (0.7, 0.8)
JACCARDS = np.arange(50, 101, 5) / 100
PAIRS = 4000
NGRAMS = 200  # different n-grams of a pair: texts of 100 to 200 words


def planted(similarity: Similarity, share: float) -> pa.Array:
    """PAIRS pairs of texts, one after the other, that share exactly `share` of their NGRAMS n-grams."""
    shared = round(share * NGRAMS)
    half = shared + (NGRAMS - shared) // 2
    more = similarity.ngram - 1  # words of the last n-gram
    texts = []
    for numbers in np.random.default_rng(shared).integers(0, 2**48, (PAIRS, NGRAMS + more)).tolist():
        words = [f"{number:x}" for number in numbers]
        texts += [" ".join(words[: half + more]), " ".join(words[: shared + more] + words[half + more :])]
    return pa.array(texts)


def measure(similarity: Similarity, share: float) -> float:
    """The share of the planted pairs whose two texts have a key in common."""
    texts = planted(similarity, share)
    pairs = np.arange(2 * PAIRS).reshape(-1, 2)
    if not np.allclose(jaccard(pairs, shingles(texts, similarity)), share):
        raise AssertionError(f"the planted pairs do not have a similarity of {share}")
    keys = band_keys(texts, similarity)
    return float((keys[:, ::2] == keys[:, 1::2]).any(axis=0).mean())


def draw(measured: dict[float, list[float]]) -> None:
    """Measured points over the curves of theory."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "recall", "svg.fonttype": "none", "font.size": 11})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    fine = np.linspace(0.45, 1, 111)
    for threshold, values in measured.items():
        bands = bands_for(threshold)
        (curve,) = axes.plot(fine, bands.recall(fine), linewidth=1.5)
        label = f"threshold {threshold}: {bands.bands} bands of {bands.rows}"
        axes.plot(JACCARDS, values, "o", color=curve.get_color(), label=label)
        axes.axvline(threshold, color=curve.get_color(), linestyle=":", linewidth=1)
    axes.set(xlabel="Jaccard similarity of the pair", ylabel="share of pairs found", ylim=(0, 1.03), xlim=(0.45, 1.01))
    axes.set_title(f"Recall: measured on {PAIRS} planted pairs a point, over theory")
    axes.legend(loc="lower right")
    figure.savefig(FIGURE, metadata={"Date": None, "Creator": None})


def main() -> None:
    """Measure, print, draw."""
    measured: dict[float, list[float]] = {}
    for threshold in THRESHOLDS:
        similarity = Similarity(threshold=threshold)
        measured[threshold] = [measure(similarity, share) for share in JACCARDS]
        for share, value in zip(JACCARDS, measured[threshold], strict=True):
            theory = float(bands_for(threshold).recall(share))
            for system, number in (("attune", value), ("theory", theory)):
                work = f"recall at {share:.2f}, threshold {threshold}"
                print(json.dumps({"work": work, "system": system, "value": round(number, 4), "unit": "share"}))
    draw(measured)


if __name__ == "__main__":
    main()
