"""Fit the length tables of `traces/data/` to public measurements, and print how close they come.

    python -m voltana.traces.fit <folder with the data files> [--out <folder>]

The data files are not part of this package; each table names where its file comes from.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from voltana.traces.files import FileTrace
from voltana.traces.stream import Block, Floats, Ints
from voltana.traces.table import LengthTable

Document = dict[str, Any]

QUANTILE_LEVELS = np.linspace(0, 1, 201)
PERCENTILES = (10, 25, 50, 75, 90, 95, 99)
CHECK_DRAWS = 500_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """One table: which file, what is filtered, where the copula's cells end, and where the numbers come from."""

    name: str
    file: str
    min_tokens: int
    max_total_tokens: int | None
    copula_levels: Floats
    source: str
    licence: str
    transformation: str
    compose: Callable[[Block, Path], Block] = lambda data, _: data
    """From the rows of the file and the folder of the data to the lengths the table is fitted to."""


LMSYS_ANSWERS = "lmsys_output_lengths_by_model_ssjf.csv.gz"
LMSYS_MEANS = (92.2, 207.4)
"""Tokens of first prompts and first answers in 100,000 conversations of LMSYS-Chat-1M."""
_LEVELS = 4000


def lmsys_chat_1m(arena: Block, data_dir: Path) -> Block:
    """First turns of LMSYS-Chat-1M, which is not free to copy, from what others published of it.

    Prompts: the arena's, scaled to the mean. Answers: the published ones, which stop below the 512 tokens at which the
    demo cut, and beyond those the arena's, in the share that gives the mean. Dependence: the arena's quantile levels.
    """
    below = np.loadtxt(data_dir / LMSYS_ANSWERS, dtype=np.int64, delimiter=",", skiprows=1, usecols=1)
    beyond = arena.output_tokens[arena.output_tokens > below.max()]
    share = (LMSYS_MEANS[1] - below.mean()) / (beyond.mean() - below.mean())
    even = (np.arange(_LEVELS) + 0.5) / _LEVELS
    cut = round(_LEVELS * (1 - share))
    answers = np.concatenate(
        [np.quantile(part, (np.arange(n) + 0.5) / n) for part, n in ((below, cut), (beyond, _LEVELS - cut))]
    )
    prompts = arena.input_tokens * LMSYS_MEANS[0] / arena.input_tokens.mean()
    rng = np.random.default_rng(0)
    inputs, outputs = (_levels(tokens, rng) for tokens in arena[:2])
    return Block(
        np.maximum(2, np.rint(np.quantile(prompts, inputs))).astype(np.int64),
        np.rint(np.interp(outputs, even, answers)).astype(np.int64),
    )


RECIPES = (
    Recipe(
        name="sharegpt",
        file="sharegpt_first_turn_opt_tok.csv.gz",
        min_tokens=2,
        max_total_tokens=3000,
        copula_levels=np.array([*np.arange(20) / 20, 0.98, 0.99, 0.995, 1]),
        source="sosp-ae-39/sosp-ae-astra datasets/sharegpt_opt_text_completion_length.pkl @3180d2f: ShareGPT, first "
        "user turn and first answer of each conversation, March 2023, OPT tokenizer",
        licence="none stated by the source; this file holds fitted statistics of token counts only",
        transformation="rows with input or output below 2 tokens, or above 3000 tokens together, dropped; "
        "quantiles at 201 even levels; 23 x 23 histogram of quantile levels, finer in the tails",
    ),
    Recipe(
        name="lmsys_arena",
        file="lmsys_arena_vtc_1500.csv",
        min_tokens=2,
        max_total_tokens=None,
        copula_levels=np.linspace(0, 1, 11),
        source="Ying1123/VTC-artifact fair_bench/real_trace.pkl @192c2e2: chat.lmsys.org (Chatbot Arena) requests, "
        "10 minutes at 2.5 requests per second",
        licence="Apache-2.0",
        transformation="quantiles at 201 even levels; 10 x 10 histogram of quantile levels",
    ),
    Recipe(
        name="lmsys",
        file="lmsys_arena_vtc_1500.csv",
        min_tokens=2,
        max_total_tokens=3000,
        copula_levels=np.linspace(0, 1, 11),
        source="LMSYS-Chat-1M (arXiv 2309.11998), first turns. Answers: James-QiuHaoran/LLM-serving-with-proxy-models "
        "model-serving/prediction/final/predictions_warmup_cls_1000K.csv @4b86686, 85,482 first answers of vicuna-13b, "
        "2 to 511 tokens of its tokenizer. Means: a public script that turns the first turns of 100,000 conversations "
        "into a trace notes 92.2 and 207.4 tokens (LongChat tokenizer); over all turns the data set's paper has 69.5 "
        "and 214.5. Shape of prompts, answers from 512 tokens up, dependence: the arena trace of table lmsys_arena",
        licence="Apache-2.0 (both files); LMSYS-Chat-1M's own licence forbids redistribution, and no row of it is here",
        transformation="arena prompts scaled to a mean of 92.2; answers below 512 tokens as published, above the "
        "arena's, in the share (8 %) that gives a mean of 207.4; paired by the arena's quantile levels; then quantiles "
        "at 201 even levels; 10 x 10 histogram of quantile levels",
        compose=lmsys_chat_1m,
    ),
)


def read(recipe: Recipe, data_dir: Path) -> Block:
    """Read the recipe's file, apply its filters and compose what the table is fitted to."""
    unused_rng = np.random.default_rng(0)
    blocks = list(FileTrace(path=str(data_dir / recipe.file)).blocks(unused_rng, 65536))
    inputs = np.concatenate([block.input_tokens for block in blocks])
    outputs = np.concatenate([block.output_tokens for block in blocks])
    kept = np.minimum(inputs, outputs) >= recipe.min_tokens
    if recipe.max_total_tokens is not None:
        kept &= inputs + outputs <= recipe.max_total_tokens
    return recipe.compose(Block(inputs[kept], outputs[kept]), data_dir)


def fit(recipe: Recipe, data: Block) -> Document:
    """Build the table of the data, with its provenance and the facts it is checked against."""
    table = LengthTable(
        input_quantiles=np.round(np.quantile(data.input_tokens, QUANTILE_LEVELS), 2),
        output_quantiles=np.round(np.quantile(data.output_tokens, QUANTILE_LEVELS), 2),
        copula=copula(data, recipe.copula_levels),
        copula_levels=recipe.copula_levels,
        max_total_tokens=recipe.max_total_tokens,
    )
    return {
        "name": recipe.name,
        "source": recipe.source,
        "licence": recipe.licence,
        "transformation": recipe.transformation,
        "facts_of_the_data": facts(data),
        "max_total_tokens": recipe.max_total_tokens,
        "input_quantiles": table.input_quantiles.tolist(),
        "output_quantiles": table.output_quantiles.tolist(),
        "copula_levels": table.copula_levels.tolist(),
        "copula": correct_for_filter(table).tolist(),
    }


def copula(data: Block, levels: Floats) -> Floats:
    """Share of the data in each cell of a grid of quantile levels; ties are split at random, once and for all."""
    rng = np.random.default_rng(0)
    row, column = (
        np.searchsorted(levels, _levels(tokens, rng), side="right") - 1
        for tokens in (data.input_tokens, data.output_tokens)
    )
    cells = len(levels) - 1
    counts = np.bincount(row * cells + column, minlength=cells**2).reshape(cells, cells)
    return counts / len(data.input_tokens)


def _levels(tokens: Ints, rng: np.random.Generator) -> Floats:
    order = np.lexsort((rng.random(len(tokens)), tokens))
    ranks = np.empty(len(tokens))
    ranks[order] = np.arange(len(tokens))
    return (ranks + 0.5) / len(tokens)


def correct_for_filter(table: LengthTable, grid: int = 100) -> Floats:
    """Raise each cell by the share of its draws that the context filter drops, so that what passes is right."""
    corrected = table.copula.copy()
    if table.max_total_tokens is not None:
        middles = (np.arange(grid) + 0.5) / grid
        inner_x, inner_y = (inner.ravel() for inner in np.meshgrid(middles, middles))
        for row, column in np.argwhere(table.copula > 0):
            inputs, outputs = table.at(row, column, inner_x, inner_y)
            corrected[row, column] /= (inputs + outputs <= table.max_total_tokens).mean()
    corrected /= corrected.sum()
    return corrected.round(7)


def facts(data: Block) -> Document:
    """Mean and percentiles of both marginals, rank correlation, extremes."""
    return {
        "requests": len(data.input_tokens),
        "input_tokens": _marginal(data.input_tokens),
        "output_tokens": _marginal(data.output_tokens),
        "spearman": round(spearman(data.input_tokens, data.output_tokens), 4),
        "max_total_tokens": int((data.input_tokens + data.output_tokens).max()),
    }


def _marginal(tokens: Ints) -> dict[str, float]:
    percentiles = zip(PERCENTILES, np.percentile(tokens, PERCENTILES), strict=True)
    shares = {f"p{percentile}": round(float(value), 2) for percentile, value in percentiles}
    return {"mean": round(float(tokens.mean()), 2), **shares, "min": int(tokens.min()), "max": int(tokens.max())}


def spearman(x: Ints, y: Ints) -> float:
    """Rank correlation with ties at their mean rank."""
    return float(np.corrcoef(_mean_ranks(x), _mean_ranks(y))[0, 1])


def _mean_ranks(values: Ints) -> Floats:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: Floats = np.cumsum(counts) - (counts - 1) / 2
    return ranks[inverse]


def drawn(document: Document, draws: int = CHECK_DRAWS, seed: int = 1) -> Block:
    """Draw from a fitted table, to compare with its data."""
    table = LengthTable.from_json(document)
    blocks, count = [], 0
    for block in table.draw(np.random.default_rng(seed), 1 << 16):
        blocks.append(block)
        count += len(block.input_tokens)
        if count >= draws:
            break
    return Block(*(np.concatenate(column)[:draws] for column in zip(*(block[:2] for block in blocks), strict=True)))


def comparison(document: Document) -> list[str]:
    """Compare the data with draws from its table, as rows of a Markdown table."""
    data, table = document["facts_of_the_data"], facts(drawn(document))
    rows = [f"| {document['name']} | data | table | difference |", "|---|---|---|---|"]
    for column in ("input_tokens", "output_tokens"):
        for statistic, value in data[column].items():
            found = table[column][statistic]
            rows.append(f"| {column} {statistic} | {value:g} | {found:g} | {100 * (found / value - 1):+.1f} % |")
    return rows + [
        f"| {key} | {data[key]:g} | {table[key]:g} | {table[key] - data[key]:+.3g} |"
        for key in ("spearman", "max_total_tokens")
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Fit every table and print the comparison."""
    parser = argparse.ArgumentParser(prog="python -m voltana.traces.fit", description=__doc__)
    parser.add_argument("data_dir", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    options = parser.parse_args(arguments)
    for recipe in RECIPES:
        document = fit(recipe, read(recipe, options.data_dir))
        (options.out / f"{recipe.name}.json").write_text(_compact(document), encoding="utf-8")
        print("\n".join(comparison(document)), end="\n\n")


def _compact(document: Document) -> str:
    """One key a line, one copula row a line."""
    rows = ",\n  ".join(json.dumps(row) for row in document["copula"])
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in document.items() if key != "copula"]
    return "{\n" + ",\n".join([*lines, f'"copula": [\n  {rows}\n]']) + "\n}\n"


if __name__ == "__main__":
    main()
