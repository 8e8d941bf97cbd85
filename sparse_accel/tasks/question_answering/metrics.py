"""Exact match and F1 of question answering, as the official evaluation scripts of SQuAD 1.1 and 2.0 define them.

Sources: evaluate-v1.1.py (https://arxiv.org/abs/1606.05250) and evaluate-v2.0.py (https://arxiv.org/abs/1806.03822),
from https://rajpurkar.github.io/SQuAD-explorer. The scripts give percentages; here all metrics are fractions, 0 to 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_METRICS = ("exact_match", "f1")
_BY_KIND = ("has_answer_exact_match", "has_answer_f1", "no_answer_exact_match", "no_answer_f1")
_BEST = ("best_exact_match", "best_exact_match_threshold", "best_f1", "best_f1_threshold")

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")


def metric_names(version_2: bool) -> tuple[str, ...]:
    """Returns the names of all metrics of SQuAD 1.1, or of SQuAD 2.0: `squad_v2_metrics`, then `best_thresholds`."""
    return (*_METRICS, *_BY_KIND, *_BEST) if version_2 else _METRICS


def normalize_answer(text: str) -> str:
    """Returns a text as answers are compared: lower case, without ASCII punctuation, then without the words a, an and
    the, and with single spaces between words.

    Punctuation is removed before words are told apart: "1,000" is "1000", and "U.S." is "us". Other punctuation, such
    as “ or 。, stays. Text without spaces (Chinese, Japanese) is one word.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(prediction: str, gold: Sequence[str], version_2: bool = False) -> tuple[float, float]:
    """Returns exact match (0 or 1) and F1 (0 to 1) of one prediction, each the best over all gold answers.

    F1 is the harmonic mean of precision and recall over the words of the normalized texts, counted with repetitions.

    Args:
        prediction: text; empty for "no answer".
        gold: texts of the gold answers, empty for a SQuAD 2.0 question without an answer.
        version_2: whether the rules of SQuAD 2.0 apply: without gold answers the only one is "", gold answers that are
            empty when normalized do not count, and F1 is 1 if both texts are empty when normalized (in SQuAD 1.1: 0). A
            prediction of articles and punctuation alone counts as "no answer" here, as in the script.

    Raises:
        ValueError: no gold answers in SQuAD 1.1.
    """
    words = normalize_answer(prediction).split()
    gold_words = [normalize_answer(text).split() for text in gold]
    if version_2:
        gold_words = [each for each in gold_words if each] or [[]]
    if not gold_words:
        raise ValueError("no gold answers: a question of SQuAD 1.1 has at least one")
    return float(words in gold_words), max(_f1(words, each, version_2) for each in gold_words)


def squad_metrics(predictions: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns the metrics of SQuAD 1.1, by name: exact_match and f1, means over the questions.

    Args:
        predictions: one text per question.
        gold: texts of the gold answers of each question, at least one each.

    Raises:
        ValueError: different lengths, no questions, or a question without gold answers.
    """
    return _means(_all_scores(predictions, gold, version_2=False))


def squad_v2_metrics(predictions: Sequence[str], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns the metrics of SQuAD 2.0, by name: means over the questions.

    Args:
        predictions: one text per question, empty for "no answer" (the threshold is already applied).
        gold: texts of the gold answers of each question; no texts: the question has no answer.

    Returns:
        exact_match and f1 over all questions; has_answer_exact_match and has_answer_f1 over those with an answer
        (HasAns_ in the script), no_answer_exact_match and no_answer_f1 over those without (NoAns_). If there are no
        questions of a kind, its two metrics are left out.

    Raises:
        ValueError: different lengths, or no questions.
    """
    scores = _all_scores(predictions, gold, version_2=True)
    figures = _means(scores)
    for prefix, kind in (("has_answer", True), ("no_answer", False)):
        if chosen := [score for score, answers in zip(scores, gold, strict=True) if bool(answers) == kind]:
            figures |= {f"{prefix}_{name}": figure for name, figure in _means(chosen).items()}
    return figures


def best_thresholds(
    predictions: Sequence[str], gold: Sequence[Sequence[str]], null_scores: Sequence[float]
) -> dict[str, float]:
    """Returns the best metrics of SQuAD 2.0 that a threshold over null scores can give, and these thresholds.

    A question is answered with its prediction if its null score is at most the threshold, else with "". This is
    `find_all_best_thresh` of the script, with its conventions: the threshold is 0 if it is best to answer nothing; and
    questions are added one by one, by null score, those with equal null scores in the given order. So if many are
    equal, a best metric may be that of a part of them, which no threshold selects.

    Args:
        predictions: one text per question: its best span, whatever its null score. A prediction that is already ""
            stays so at every threshold.
        gold: texts of the gold answers of each question; no texts: the question has no answer.
        null_scores: one number per question, the higher the more likely it has no answer (na_prob of the script): the
            score of the null answer minus that of the best span; inf: never answered.

    Returns:
        best_exact_match, best_f1: fractions; best_exact_match_threshold, best_f1_threshold: in the unit of null_scores.

    Raises:
        ValueError: different lengths, no questions, or a null score that is NaN.
    """
    scores = _all_scores(predictions, gold, version_2=True)
    if len(null_scores) != len(scores):
        raise ValueError(f"{len(null_scores)} null scores for {len(scores)} questions")
    if any(score != score for score in null_scores):
        raise ValueError("null scores contain NaN")
    order = sorted(range(len(scores)), key=lambda question: null_scores[question])
    figures: dict[str, float] = {}
    for position, name in enumerate(_METRICS):
        # At first no question is answered, then one more in every step.
        current = best = float(sum(not answers for answers in gold))
        threshold = 0.0
        for question in order:
            current += scores[question][position] if gold[question] else -float(bool(predictions[question]))
            if current > best:
                best, threshold = current, float(null_scores[question])
        figures |= {f"best_{name}": best / len(scores), f"best_{name}_threshold": threshold}
    return figures


def _all_scores(
    predictions: Sequence[str], gold: Sequence[Sequence[str]], version_2: bool
) -> list[tuple[float, float]]:
    """Returns exact match and F1 of each question, checked."""
    if len(predictions) != len(gold):
        raise ValueError(f"{len(predictions)} predictions for {len(gold)} questions")
    if not gold:
        raise ValueError("no questions")
    if not version_2 and not all(gold):
        number = next(number for number, answers in enumerate(gold) if not answers)
        raise ValueError(f"question {number} (from 0) has no gold answers, as only questions of SQuAD 2.0 may")
    return [answer_scores(text, answers, version_2) for text, answers in zip(predictions, gold, strict=True)]


def _means(scores: Sequence[tuple[float, float]]) -> dict[str, float]:
    return {name: sum(column) / len(scores) for name, column in zip(_METRICS, zip(*scores, strict=True), strict=True)}


def _f1(words: list[str], gold: list[str], version_2: bool) -> float:
    """Returns the F1 of the words of two normalized texts."""
    if version_2 and not (words and gold):
        return float(words == gold)
    common = (Counter(words) & Counter(gold)).total()
    if not common:
        return 0.0
    precision, recall = common / len(words), common / len(gold)
    return 2 * precision * recall / (precision + recall)
