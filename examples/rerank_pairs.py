"""Makes the data of a reranker from sentence pairs with a similarity, such as those of STS-B.

    python examples/rerank_pairs.py stsb/train.csv pairs.csv --others 9

Reads the columns sentence1, sentence2 and score, 0 to 5. Each first sentence is a query; its documents are the second
sentences of its own rows, with their scores from 0 to 1, and those of other rows, drawn at random, with the score 0.
(Few of them are similar, but they may be.) Queries without a document of at least 0.5 are left out.
"""

from __future__ import annotations

import argparse
import csv
import random


def rerank_pairs(rows: list[dict[str, str]], others: int, seed: int = 0) -> list[tuple[str, str, float]]:
    """Returns rows of query, document and score, sorted.

    Args:
        rows: with sentence1, sentence2 and score, 0 to 5.
        others: how many documents of other rows each query gets.
        seed: of the draw.
    """
    draw = random.Random(seed)
    documents = sorted({row["sentence2"] for row in rows})
    own: dict[str, dict[str, float]] = {}
    for row in rows:
        own.setdefault(row["sentence1"], {})[row["sentence2"]] = float(row["score"]) / 5
    pairs = []
    for query, scores in sorted(own.items()):
        if max(scores.values()) >= 0.5:
            strangers = draw.sample(documents, min(others, len(documents)))
            pairs += [(query, each, score) for each, score in sorted((dict.fromkeys(strangers, 0.0) | scores).items())]
    return pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="CSV file with sentence1, sentence2, score")
    parser.add_argument("target", help="CSV file to write: query, document, score")
    parser.add_argument("--others", type=int, default=9, help="documents of other rows for each query (default: 9)")
    arguments = parser.parse_args()
    with open(arguments.source, encoding="utf-8", newline="") as stream:
        pairs = rerank_pairs(list(csv.DictReader(stream)), arguments.others)
    with open(arguments.target, "w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["query", "document", "score"])
        writer.writerows(pairs)


if __name__ == "__main__":
    main()
