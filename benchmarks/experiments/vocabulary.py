"""How often two tokenizers cut the same word into the same tokens: all pairs, by kind of word.

Run by ``python -m benchmarks.experiments.vocabulary``; see docs/experiments.md. Only tokenizers are loaded.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.experiments.data import DATASETS, SHARED
from benchmarks.experiments.plots import COLOURS, GREY, OUT, markdown, new_figure, save
from benchmarks.experiments.words import word_lists
from benchmarks.real_accuracy import REAL
from gac_core.evaluation.questions import read_questions
from gac_core.inspection import load, pieces_of, share_cut_alike

ROOT = Path(__file__).parent.parent.parent
MEMBERS = ("smollm2", "gemma3", "qwen")
Pieces = Sequence[tuple[bytes, ...] | None]


@dataclass(frozen=True)
class Pair:
    """Agreement of two tokenizers.

    Attributes:
        first: Name of the one.
        second: Name of the other.
        shares: By category, the share of texts that both cut into the same tokens, 0 to 1.
    """

    first: str
    second: str
    shares: Mapping[str, float]

    @property
    def name(self) -> str:
        """Both names."""
        return f"{self.first} + {self.second}"


def compare(pieces: Mapping[str, Mapping[str, Pieces]]) -> list[Pair]:
    """Returns the agreement of every two tokenizers.

    Args:
        pieces: By tokenizer and category, the tokens of each text.
    """
    return [
        Pair(a, b, {each: share_cut_alike(pieces[a][each], pieces[b][each]) for each in pieces[a]})
        for a, b in itertools.combinations(pieces, 2)
    ]


def by_closeness(pairs: Sequence[Pair], category: str) -> list[str]:
    """Returns the names of the tokenizers, the one with the highest mean agreement first."""
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second)))
    means = {name: statistics.mean(p.shares[category] for p in pairs if name in (p.first, p.second)) for name in names}
    return sorted(names, key=lambda name: -means[name])


def heat_map(pairs: Sequence[Pair], category: str, path: Path) -> None:
    """Draws the agreement of all pairs for one category."""
    names = by_closeness(pairs, category)
    share = {(name, name): 1.0 for name in names}
    for pair in pairs:
        share[pair.first, pair.second] = share[pair.second, pair.first] = pair.shares[category]
    figure, (axes,) = new_figure(7.2, 6.4)
    axes.imshow([[share[a, b] for b in names] for a in names], cmap="Blues", vmin=0.4, vmax=1.1)
    for y, x in itertools.product(range(len(names)), repeat=2):
        if x != y:
            value = share[names[y], names[x]]
            axes.text(x, y, f"{100 * value:.0f}", ha="center", va="center", color="white" if value > 0.85 else "black")
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_title(f"{category} cut into the same tokens, %")
    save(figure, path)


def range_plot(pairs: Sequence[Pair], marked: Sequence[str], path: Path) -> None:
    """Draws the spread over all pairs by category, and the pairs ``marked`` in colours."""
    categories = list(pairs[0].shares)
    figure, (axes,) = new_figure(7.2, 0.36 * len(categories) + 1.4)
    for row, category in enumerate(categories):
        shares = [100 * pair.shares[category] for pair in pairs]
        low, middle, high = statistics.quantiles(shares, n=4, method="inclusive")
        axes.plot([min(shares), max(shares)], [row, row], color=GREY, linewidth=1)
        axes.plot([low, high], [row, row], color=GREY, linewidth=7, alpha=0.5, solid_capstyle="butt")
        axes.plot([middle], [row], "|", color="black", markersize=11)
    for colour, pair in zip(COLOURS, (each for each in pairs if each.name in marked), strict=False):
        shares = [100 * pair.shares[each] for each in categories]
        axes.plot(shares, range(len(categories)), "o", color=colour, markersize=6, alpha=0.8, label=pair.name)
    axes.set_yticks(range(len(categories)), categories)
    axes.invert_yaxis()
    axes.set_xlim(-2, 102)
    axes.set_xlabel(f"cut into the same tokens, %; grey: all {len(pairs)} pairs, the middle half thick, bar: median")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False)
    axes.grid(axis="x", alpha=0.3)
    save(figure, path)


def table(pairs: Sequence[Pair], marked: Sequence[str], counts: Mapping[str, int]) -> str:
    """Returns the table by category: number of texts, quantiles over all pairs, and the marked pairs."""
    rows = []
    for category, count in counts.items():
        shares = sorted(100 * pair.shares[category] for pair in pairs)
        own = [f"{100 * pair.shares[category]:.1f}" for pair in pairs if pair.name in marked]
        spread = f"{shares[0]:.0f} to {shares[-1]:.0f}"
        rows.append([category, f"{count:,}", f"{statistics.median(shares):.1f}", spread, *own])
    named = [pair.name for pair in pairs if pair.name in marked]
    return markdown(["kind", "texts", "median of all pairs", "least to most", *named], rows)


def write_csv(pairs: Sequence[Pair], path: Path) -> None:
    """Writes one line per pair and one column per category."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["first", "second", *pairs[0].shares])
        writer.writerows([pair.first, pair.second, *(f"{v:.4f}" for v in pair.shares.values())] for pair in pairs)


def main() -> None:
    """Compares the tokenizers, prints the table, writes the data and two plots."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizers", type=Path, nargs="+", help="folders; default: all shared and real ones")
    parser.add_argument("--mmlu", type=Path, default=DATASETS / "benchmarks" / "mmlu.jsonl", help="its questions")
    parser.add_argument("--code", type=Path, default=ROOT / "gac_core", help="folder of Python files")
    parser.add_argument("--marked", nargs="+", default=MEMBERS, help="tokenizers whose pairs are shown one by one")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for vocabulary.csv and the plots")
    args = parser.parse_args()
    folders = args.tokenizers or [*sorted((SHARED / "tokenizers").iterdir()), *(REAL / name for name in MEMBERS)]
    texts = word_lists(read_questions(args.mmlu), args.code)
    pieces = {}
    for folder in folders:
        tokenizer = load(str(folder)).tokenizer
        pieces[folder.name] = {category: pieces_of(tokenizer, each) for category, each in texts.items()}
    pairs = compare(pieces)
    marked = [pair.name for pair in pairs if pair.first in args.marked and pair.second in args.marked]
    write_csv(pairs, args.out / "vocabulary.csv")
    heat_map(pairs, "common words", args.out / "vocabulary.svg")
    range_plot(pairs, marked, args.out / "vocabulary-kinds.svg")
    print(f"{len(pairs)} pairs\n")
    print(table(pairs, marked, {category: len(each) for category, each in texts.items()}))


if __name__ == "__main__":
    main()
