"""sparse_accel.answer: the answers of a deployment are those of the evaluation, with the scores of the old pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from export_fixtures import export
from question_fixtures import (
    LENGTH,
    STRIDE,
    Question,
    TinyQuestions,
    questions,
    write_questions,
)
from script_fixtures import read_json
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForQuestionAnswering,
)

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.export.answer import answer
from sparse_accel.runtime.loading import VARIABLE
from sparse_accel.tasks.question_answering.encoding import windows

pytest_plugins = ["question_fixtures", "export_fixtures"]
pytestmark = pytest.mark.usefixtures("quick")

# Windows of the tiny run, and the longest answers of its evaluation.
AS_THE_RUN: dict[str, Any] = {"max_seq_len": LENGTH, "doc_stride": STRIDE, "max_answer_len": 30}


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime's own sessions, on every CPU."""
    monkeypatch.setenv(VARIABLE, "none")


@pytest.fixture(scope="module")
def deployed(tiny_questions: TinyQuestions, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A deployment of a dense float model."""
    folder = tmp_path_factory.mktemp("deployed") / "out"
    done = export(model_path=tiny_questions.teacher, output_dir=folder)
    assert done.code == 0, done.all
    return folder


def test_answers_are_those_of_the_evaluation(deployed: Path, tiny_questions: TinyQuestions) -> None:
    """In PyTorch, of the same model: among them, contexts of several windows."""
    rows = questions(60, seed=2)
    expected = read_json(tiny_questions.teacher / "eval_predictions.json")
    found = answer(deployed, [row.question for row in rows], [row.context for row in rows], **AS_THE_RUN)
    assert [each["answer"] for each in found] == [expected[row.id] for row in rows]
    assert all(
        row.context[each["start"] : each["end"]] == each["answer"] for row, each in zip(rows, found, strict=True)
    )
    several = answer(deployed, [row.question for row in rows], [row.context for row in rows], **AS_THE_RUN, top_k=3)
    assert [each[0] for each in several] == found and all(len(each) == 3 for each in several)
    assert all(len({(one["start"], one["end"]) for one in each}) == 3 for each in several)


def test_forms_of_questions(deployed: Path) -> None:
    one, other = questions(2, seed=8)
    single = answer(deployed, one.question, one.context)
    assert set(single) == {"score", "start", "end", "answer"} and sparse_accel.answer is answer
    assert [type(single[name]) for name in ("score", "start", "end", "answer")] == [float, int, int, str]
    json.dumps(single)
    assert answer(deployed, [one.question], [one.context]) == [single]
    assert answer(deployed, one.question, one.context, top_k=2)[0] == single
    both = answer(deployed, [one.question, other.question], one.context)
    assert both == answer(deployed, (one.question, other.question), (one.context, one.context)) and both[0] == single
    assert answer(deployed, [], []) == []


def test_scores_are_those_of_the_old_pipeline(deployed: Path, tiny_questions: TinyQuestions) -> None:
    model: Any = AutoModelForQuestionAnswering.from_pretrained(tiny_questions.teacher).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_questions.teacher)
    assert_as_the_old_pipeline(deployed, model, tokenizer, questions(40, seed=9))


def assert_as_the_old_pipeline(deployed: Path, model: Any, tokenizer: Any, rows: list[Question]) -> None:
    """Compares answers with those of QuestionAnsweringPipeline of transformers 4.57, align_to_words=False, for contexts
    of one window: there, several windows add up to more than 1."""
    asked = [row for row in rows if len(tokenizer(row.question, row.context)["input_ids"]) <= 60]
    assert len(asked) >= len(rows) / 4
    texts = [row.question for row in asked], [row.context for row in asked]
    without, with_none = (answer(deployed, *texts, top_k=3, handle_impossible_answer=none) for none in (False, True))
    for row, spans, mixed in zip(asked, without, with_none, strict=True):
        encoded = tokenizer(row.question, row.context, return_tensors="pt", return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            outputs = model(**encoded)
        inside = np.array([part == 1 for part in encoded.sequence_ids()])
        outside = torch.from_numpy(~inside)
        outside[0] = False  # [CLS] counts
        start, end = (
            torch.softmax(logits[0].masked_fill(outside, -10000.0).double(), dim=0).numpy()
            for logits in (outputs.start_logits, outputs.end_logits)
        )
        products = np.tril(np.triu(np.outer(start, end)), 14) * inside[:, None] * inside
        best = np.argsort(-products, axis=None)[:3]
        places = [np.unravel_index(at, products.shape) for at in best]
        assert [each["score"] for each in spans] == pytest.approx(products.flat[best], abs=1e-5)
        if np.diff(products.flat[best]).max() < -1e-5:
            expected = [(offsets[first][0], offsets[last][1]) for first, last in places]
            assert [(each["start"], each["end"]) for each in spans] == expected
        scores = [*products.flat[best], start[0] * end[0]]
        assert [each["score"] for each in mixed] == pytest.approx(sorted(scores, reverse=True)[:3], abs=1e-5)


def test_no_answer(deployed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the token for it has the highest logits. Of several windows, its lowest score counts, and of an answer the
    highest one."""
    row = next(row for row in questions(40, seed=9, long=1.0) if len(row.context.split()) > 30)

    class Stub:
        def __init__(self, lift: float) -> None:
            self.lift = lift

        def get_inputs(self) -> list[Any]:
            return [SimpleNamespace(name=name, shape=["batch", "sequence"]) for name in ("input_ids", "attention_mask")]

        def get_outputs(self) -> list[Any]:
            return [SimpleNamespace(name=name) for name in ("start_logits", "end_logits")]

        def run(self, names: list[str], feed: dict[str, np.ndarray]) -> list[np.ndarray]:
            logits = np.zeros(feed["input_ids"].shape, dtype=np.float32)
            logits[:, 0] = self.lift
            logits[0, 20] = 1.0  # of the first window, and one of those that the second window has too
            return [logits, logits]

    asked: dict[str, Any] = {"max_seq_len": LENGTH, "doc_stride": STRIDE, "handle_impossible_answer": True}
    for lift, is_empty in ((1.5, True), (0.5, False)):
        monkeypatch.setattr("sparse_accel.runtime.session", lambda _, lift=lift: Stub(lift))
        found = answer(deployed, row.question, row.context, **asked)
        assert ((found["answer"], found["start"], found["end"]) == ("", 0, 0)) == is_empty
        # The softmax is over the tokens of the context of a window, and that for "no answer".
        tokens = LENGTH - len(AutoTokenizer.from_pretrained(deployed)(row.question)["input_ids"]) - 1
        whole = np.exp(lift) + np.exp(1.0) + tokens - 1
        assert found["score"] == pytest.approx((np.exp(lift if is_empty else 1.0) / whole) ** 2, abs=1e-6)
        listed = answer(deployed, row.question, row.context, **asked, top_k=2)
        assert listed[0] == found and bool(listed[0]["answer"]) != bool(listed[1]["answer"])
        assert answer(deployed, row.question, row.context, **{**asked, "handle_impossible_answer": False})["answer"]


def test_what_cannot_be_answered(deployed: Path, tmp_path: Path) -> None:
    cases: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        ("", "a film", {}, UsageError, r"question 0 \(from 0\) is ''"),
        (["who ?", "who ?"], ["a film", " \n"], {}, UsageError, r"context 1 \(from 0\) is ' "),
        (["who ?", None], "a film", {}, UsageError, r"question 1 \(from 0\) is None"),
        (["who ?"], ["a", "b"], {}, ValueError, "1 questions, 2 contexts"),
        ("who ?", ["a"], {}, ValueError, "give a context for each"),
        ("who ?", "a film", {"top_k": 0}, ValueError, "must be at least 1"),
        ("who ?", "a film", {"doc_stride": -1}, ValueError, "at least 0"),
        ("who went ? " * 20, "a film " * 40, {}, UsageError, "Set max_seq_len to .* reduce doc_stride"),
    ]
    for question, context, settings, error, said in cases:
        with pytest.raises(error, match=said) as caught:
            answer(deployed, question, context, **settings)
        assert "--" not in str(caught.value)
    with pytest.raises(FileNotFoundError):
        answer(tmp_path, "who ?", "a film")


def test_a_folder_of_another_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = SimpleNamespace(get_outputs=lambda: [SimpleNamespace(name="logits")])
    monkeypatch.setattr("sparse_accel.runtime.session", lambda _: other)
    with pytest.raises(UsageError, match=r"is not a deployment of a question answering model: .*logits"):
        answer(tmp_path, "who ?", "a film")


def test_windows_that_a_stride_fills(deployed: Path) -> None:
    """A stride of more than half of a window is that half: every token of the context is read, in finite time."""
    row = next(row for row in questions(40, seed=9, long=1.0) if len(row.context.split()) > 30)
    assert len(list(windows(60, 18, 12))) > 3
    found = answer(deployed, row.question, row.context, max_seq_len=LENGTH, doc_stride=1000)
    assert row.context[found["start"] : found["end"]] == found["answer"]


def make_bytes() -> PreTrainedTokenizerFast:
    """A tokenizer as RoBERTa's, each byte a token: no token types, two separators."""
    special = ["<pad>", "<unk>", "<cls>", "<sep>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(special + letters)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.RobertaProcessing(("<sep>", 3), ("<cls>", 2), add_prefix_space=False)
    names: dict[str, Any] = {f"{name}_token": f"<{name}>" for name in ("pad", "unk", "cls", "sep")}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_input_names=inputs, model_max_length=64, **names)


@pytest.mark.slow
def test_a_float_model_with_a_tokenizer_of_bytes(tmp_path: Path) -> None:
    """Nothing is recorded of a model that this package did not train, so that the data is named."""
    tokenizer = make_bytes()
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    ids: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "max_position_embeddings": 66}
    config = RobertaConfig(
        vocab_size=len(tokenizer), intermediate_size=64, type_vocab_size=1, initializer_range=0.2, **sizes, **ids
    )
    model: Any = RobertaForQuestionAnswering(config).eval()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    rows = questions(12, seed=6)
    file = write_questions(tmp_path / "rows.jsonl", rows)
    done = export(model_path=tmp_path / "model", output_dir=tmp_path / "out", data=file)
    assert done.code == 0, done.all
    report = read_json(tmp_path / "out" / "export_report.json")
    assert report["format"] == "float" and report["texts"] == {"source": str(file), "rows": 12, "labels": True}
    assert {check["result"] for check in report["checks"]} == {"pass", "not checked"}  # of a float model: no kernels
    assert_as_the_old_pipeline(tmp_path / "out", model, AutoTokenizer.from_pretrained(tmp_path / "model"), rows)
