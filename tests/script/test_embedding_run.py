"""scripts/sentence_embedding.py as its user runs it: texts with a teacher, pairs, triples, scores; what it writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from embedding_fixtures import RECIPE, SHORT, VOCABULARY, TinyEmbeddings, make_encoder, run, start
from safetensors.torch import load_file, save_file
from script_fixtures import assert_same_model, flat, history, read_json, trace, wait
from token_fixtures import NO_DROPOUT, unfinished
from transformers import AutoModel, AutoTokenizer

import sparse_accel
from sparse_accel.models.files import load_as
from sparse_accel.nn.layers import quantizers
from sparse_accel.tasks import SentenceEmbedding, task_class

pytest_plugins = ["embedding_fixtures"]


def mean_of_tokens(folder: Path, lines: list[str]) -> torch.Tensor:
    """Embeddings by plain transformers: mean of tokens, of length 1."""
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(lines, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**inputs).last_hidden_state
    weights = inputs["attention_mask"][..., None]
    found = (hidden * weights).sum(1) / weights.sum(1)
    return found / found.norm(dim=1, keepdim=True)


def test_it_becomes_sparse_and_quantized(embedder: Path, embeddings: TinyEmbeddings) -> None:
    figures = read_json(embedder / "all_results.json")
    assert figures["encoder_sparsity"] == pytest.approx(0.8, abs=5e-3) and figures["quantized_linears"] == 12
    assert figures["eval_spearman"] > 0.5 and 0 <= figures["eval_recall_at_10"] <= 1
    losses = [*trace(embedder, "train/distillation_loss").values()]
    assert len(losses) == 28 and losses[-1] < max(losses)
    printed = flat((embeddings.folder / "embedder.txt").read_text())
    assert "its embeddings on the training rows" in printed and "scores: score, 0 to 5" in printed
    assert "validation with" in printed  # pairs and their texts
    assert "teacher_results.json" in {path.name for path in embedder.iterdir()}


def test_the_folder_loads_everywhere(embedder: Path, embeddings: TinyEmbeddings) -> None:
    """As it was trained here; as a float model in plain transformers and in sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    lines = embeddings.train.read_text().splitlines()[:20]
    model: Any = sparse_accel.load(embedder)
    assert type(model).__name__ == "BertModel" and model.config.architectures == ["BertModel"]
    assert len(quantizers(model)) > 12 and all(each.enabled for each in quantizers(model).values())
    tokenizer = AutoTokenizer.from_pretrained(embedder)
    inputs = tokenizer(lines, padding=True, return_tensors="pt")
    with torch.no_grad():
        as_trained = model(**inputs).sentence_embedding
        for each in quantizers(model).values():
            each.enabled = False
        plain = model(**inputs).sentence_embedding
    other = SentenceTransformer(str(embedder), device="cpu")
    assert other.max_seq_length == 16
    torch.testing.assert_close(torch.from_numpy(other.encode(lines)), plain, atol=1e-6, rtol=0)
    torch.testing.assert_close(mean_of_tokens(embedder, lines), plain, atol=1e-6, rtol=0)
    assert 1e-4 < float((as_trained - plain).abs().max()) < 0.5
    assert not [name for name in load_file(embedder / "model.safetensors") if "pooler" in name]


def test_other_encoders_are_what_they_were(embeddings: TinyEmbeddings) -> None:
    from transformers import AutoConfig

    assert task_class(AutoConfig.from_pretrained(embeddings.model)) is None
    assert task_class(AutoConfig.from_pretrained(embeddings.teacher)) is SentenceEmbedding


def test_a_resumed_run_ends_with_the_same_bytes(embedder: Path, embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    output = unfinished(embedder, tmp_path / "out", 14)
    done = run(**embeddings.flags(output_dir=output))
    assert done.code == 0 and "from step 14" in flat(done.out), done.all
    assert_same_model(embedder, output)
    for name in ("modules.json", "1_Pooling/config.json", "config.json"):
        assert (output / name).read_bytes() == (embedder / name).read_bytes()


def test_the_best_checkpoint_keeps_its_pooling(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    flags = embeddings.short(num_train_epochs=2, eval_strategy="epoch", save_strategy="epoch")
    best: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "spearman"}
    done = run(**flags, **best, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    step = read_json(tmp_path / "out" / "train_results.json")["best_step"]
    files = ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / f"out/checkpoint-{step}" / name).read_bytes()


@pytest.mark.parametrize("rows", ["pairs", "triples", "validation"])
def test_pairs_teach(embeddings: TinyEmbeddings, tmp_path: Path, rows: str) -> None:
    flags = embeddings.short(train_file=getattr(embeddings, rows), num_train_epochs=4)
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    losses = [*trace(tmp_path / "out", "train/loss").values()]
    assert sum(losses[-3:]) < sum(losses[:3])
    figures = read_json(tmp_path / "out" / "eval_results.json")
    assert {*figures} == {f"eval_{name}" for name in ("spearman", "pearson", "ndcg_at_10", "recall_at_10")}
    assert not [entry for entry in history(tmp_path / "out") if "eval_loss" in entry]


def test_pairs_follow_a_teacher_too(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """Each text of a triple has its row in the teacher's table, and its hidden states are compared."""
    flags = embeddings.flags(train_file=embeddings.triples, recipe_args={**SHORT, "distill_hardness": 0.5})
    done = run(**{**flags, "eval_strategy": "no", "save_strategy": "no"}, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    terms = ("loss", "task_loss", "distillation_loss", "hidden_state_distillation_loss")
    loss, task, vectors, hidden = (trace(tmp_path / "out", f"train/{name}")[1] for name in terms)
    assert loss == pytest.approx((task + vectors) / 2 + hidden, abs=1e-6)
    assert 0 < vectors < 0.2 and 0 < hidden < 0.5  # the masks of the first step alone are between them


def test_a_teacher_with_another_tokenizer(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """Its embeddings are those of its own tokens and pooling; the first distance is that before any training."""
    other = make_encoder(
        tmp_path / "other",
        seed=1,
        vocabulary=VOCABULARY[::-1],
        **NO_DROPOUT,
        sentence_embedding={"pooling": "cls", "normalize": False},
    )
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "modifiers:\n  - !EpochRangeModifier {end_epoch: 1}\n  - !DistillationModifier {hardness: 1.0}\n"
        "  - !HiddenStateDistillationModifier {tokens: first}\n"
    )
    flags = embeddings.flags(recipe=recipe, recipe_args=None, distill_teacher=other, train_file=embeddings.pairs)
    flags |= {"per_device_train_batch_size": 256, "eval_strategy": "no", "save_strategy": "no"}
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0 and "with its own tokenizer" in flat(done.out), done.all
    rows = [line.split(",") for line in embeddings.pairs.read_text().splitlines()[1:]]
    lines = [text for row in rows for text in row]
    model: Any = load_as(str(other), SentenceEmbedding)
    inputs = AutoTokenizer.from_pretrained(other)(lines, padding=True, return_tensors="pt")
    with torch.no_grad():
        theirs = model(**inputs).last_hidden_state[:, 0]
    cosines = torch.nn.functional.cosine_similarity(mean_of_tokens(embeddings.teacher, lines), theirs)
    assert trace(tmp_path / "out", "train/distillation_loss")[1] == pytest.approx(1 - float(cosines.mean()), abs=1e-5)
    assert trace(tmp_path / "out", "train/hidden_state_distillation_loss")[1] > 0


def one_shot(embeddings: TinyEmbeddings, model: Path, output: Path, **flags: Any) -> Any:
    """A run that quantizes a model without training, and evaluates it."""
    rows: dict[str, Any] = {"train_file": embeddings.train, "validation_file": embeddings.validation, "do_eval": True}
    recipe = RECIPE.with_name("one_shot_int8.yaml")
    return run(model_name_or_path=model, one_shot=True, recipe=recipe, **rows, **flags, output_dir=output)


def test_one_shot_of_an_encoder_without_pooling(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """Flags say how it pools, and so does the folder; its figures are those of the folder."""
    for output, flags, mode in ((tmp_path / "a", {}, "mean"), (tmp_path / "b", {"pooling": "cls"}, "cls")):
        done = one_shot(embeddings, embeddings.model, output, max_seq_length=16, **flags)
        assert done.code == 0, done.all
        assert done.err.count("does not say how tokens become an embedding") == 1
        assert read_json(output / "all_results.json")["quantized_linears"] == 12
        entry = read_json(output / "config.json")["sentence_embedding"]
        assert entry == {"pooling": mode, "normalize": True, "max_seq_length": 16}
        assert len(read_json(output / "modules.json")) == 3
        figures = read_json(output / "eval_results.json")
        assert figures_of(output, embeddings.validation, tmp_path / f"again_{mode}") == figures


def test_one_shot_of_a_folder_of_sentence_transformers(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """Its own pooling and length stay, and flags that contradict its pooling are refused."""
    folder = shutil.copytree(embeddings.teacher, tmp_path / "model")
    config = read_json(folder / "config.json")
    del config["sentence_embedding"]
    (folder / "config.json").write_text(json.dumps(config))
    for name, changed in (("1_Pooling/config.json", {"pooling_mode": "cls"}), ("sentence_bert_config.json", {})):
        (folder / name).write_text(json.dumps({"max_seq_length": 7, **changed}))
    done = one_shot(embeddings, folder, tmp_path / "out")
    assert done.code == 0 and "does not say how" not in done.err, done.all
    entry = read_json(tmp_path / "out" / "config.json")["sentence_embedding"]
    assert entry == {"pooling": "cls", "normalize": True, "max_seq_length": 7}
    figures = read_json(tmp_path / "out" / "eval_results.json")
    assert figures_of(tmp_path / "out", embeddings.validation, tmp_path / "again") == figures
    refused = one_shot(embeddings, folder, tmp_path / "other", pooling="mean")
    assert refused.code == 2 and "has pooling cls" in refused.err
    shorter = one_shot(embeddings, folder, tmp_path / "shorter", max_seq_length=5)
    assert shorter.code == 0 and shorter.err.count("reads up to 7 tokens of a text elsewhere") == 1, shorter.all


def test_a_language_model_is_a_start(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    from script_fixtures import make_model

    model = make_model(tmp_path / "mlm", sparse=True, vocabulary=VOCABULARY)
    flags = embeddings.short(model_name_or_path=model, pooling="cls", normalize="false")
    done = run(**flags, output_dir=tmp_path / "out")
    assert done.code == 0, done.all
    assert read_json(tmp_path / "out" / "config.json")["sentence_embedding"] == {
        "pooling": "cls",
        "normalize": False,
        "max_seq_length": 16,
    }
    assert len(read_json(tmp_path / "out" / "modules.json")) == 2
    assert type(sparse_accel.load(tmp_path / "out")).__name__ == "BertModel"


def test_predictions(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """Embeddings of texts as an array, cosines of pairs as CSV."""
    flags: dict[str, Any] = {"model_name_or_path": embeddings.teacher, "do_predict": True, "max_seq_length": 16}
    done = run(**flags, test_file=embeddings.train, output_dir=tmp_path / "texts")
    assert done.code == 0, done.all
    found = np.load(tmp_path / "texts" / "test_embeddings.npy")
    lines = embeddings.train.read_text().splitlines()
    np.testing.assert_allclose(found, mean_of_tokens(embeddings.teacher, lines).numpy(), atol=1e-5)
    done = run(**flags, test_file=embeddings.pairs, output_dir=tmp_path / "pairs")
    assert done.code == 0, done.all
    header, first, *_ = (tmp_path / "pairs" / "test_cosines.csv").read_text().splitlines()
    row = embeddings.pairs.read_text().splitlines()[1].split(",")
    one, other = mean_of_tokens(embeddings.teacher, row)
    assert header == "row,cosine" and float(first.split(",")[1]) == pytest.approx(float(one @ other), abs=1e-5)


def test_a_folder_of_sentence_transformers(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """Its own files say how it pools, in the form of any version."""
    folder = shutil.copytree(embeddings.teacher, tmp_path / "model")
    config = read_json(folder / "config.json")
    del config["sentence_embedding"]
    (folder / "config.json").write_text(json.dumps(config))
    model: Any = load_as(str(folder), SentenceEmbedding)
    assert model.config.sentence_embedding == {"pooling": "mean", "normalize": True, "max_seq_length": 16}
    newer = {"embedding_dimension": 32, "pooling_mode": "cls", "include_prompt": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(newer))
    model = load_as(str(folder), SentenceEmbedding)
    assert model.pooling.mode == "cls"


@pytest.mark.slow
def test_as_a_process(embeddings: TinyEmbeddings, embedder: Path, tmp_path: Path) -> None:
    done = wait(start(**embeddings.flags(output_dir=tmp_path / "out")))
    assert done.code == 0, done.all
    assert_same_model(embedder, tmp_path / "out")


def test_figures_are_of_the_scores_and_pairs_of_now(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """The same command on a finished run. The distinct texts, and so the tokenized rows, are the same each time."""
    rows = [line.split(",") for line in embeddings.validation.read_text().splitlines()]
    turned = [rows[0], *([first, second, f"{5 - float(score):g}"] for first, second, score in rows[1:])]
    validation, output = tmp_path / "validation.csv", tmp_path / "out"
    found, said = [], []
    for content in (rows, turned, rows, rows):
        validation.write_text("\n".join(",".join(row) for row in content))
        done = run(**embeddings.short(validation_file=validation, output_dir=output))
        assert done.code == 0, done.all
        found.append(read_json(output / "eval_results.json")["eval_spearman"])
        said.append("evaluation:" in done.out)
    assert found == pytest.approx([found[0], -found[0], found[0], found[0]], abs=1e-9) and found[0] != 0
    assert said == [True, True, True, False]


def figures_of(model: Path, validation: Path, folder: Path) -> dict[str, float]:
    """Those of an evaluation alone, as the folder has them."""
    done = run(model_name_or_path=model, validation_file=validation, do_eval=True, max_seq_length=16, output_dir=folder)
    assert done.code == 0, done.all
    found: dict[str, float] = read_json(folder / "eval_results.json")
    return found


def test_figures_are_of_the_pooling_of_now(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """Weights and rows are the same, and what makes an embedding of tokens is not."""
    model = shutil.copytree(embeddings.teacher, tmp_path / "model")
    first = figures_of(model, embeddings.validation, tmp_path / "out")
    config = read_json(model / "config.json")
    config["sentence_embedding"]["pooling"] = "cls"
    (model / "config.json").write_text(json.dumps(config))
    again = figures_of(model, embeddings.validation, tmp_path / "out")
    assert again["eval_spearman"] != first["eval_spearman"]


def test_a_teachers_table_is_of_its_pooling(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    """Two teachers of the same weights, whose vectors are of other tokens: the second one's are not those on disk."""
    other = shutil.copytree(embeddings.teacher, tmp_path / "cls")
    config = read_json(other / "config.json")
    config["sentence_embedding"]["pooling"] = "cls"
    (other / "config.json").write_text(json.dumps(config))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("modifiers:\n  - !EpochRangeModifier {end_epoch: 1}\n  - !DistillationModifier {hardness: 1.0}\n")
    losses: list[float] = []
    for teacher in (embeddings.teacher, other):
        flags = embeddings.flags(recipe=recipe, recipe_args=None, distill_teacher=teacher, cache_dir=tmp_path / "cache")
        flags |= {"eval_strategy": "no", "save_strategy": "no", "do_eval": False, "max_steps": None}
        done = run(**flags, output_dir=tmp_path / f"out{len(losses)}")
        assert done.code == 0 and "computed once" in done.out, done.all
        losses.append(trace(tmp_path / f"out{len(losses)}", "train/loss")[1])
    assert losses[0] == pytest.approx(0, abs=1e-6) and losses[1] > 1e-3


def test_a_model_of_nan_has_no_figures(embeddings: TinyEmbeddings, tmp_path: Path) -> None:
    model = shutil.copytree(embeddings.teacher, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][:] = torch.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    done = run(
        model_name_or_path=model, validation_file=embeddings.validation, do_eval=True, output_dir=tmp_path / "out"
    )
    assert done.code != 0 and "NaN" in done.err and not (tmp_path / "out" / "eval_results.json").exists(), done.all
