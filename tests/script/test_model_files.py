"""Pretrained weights are never silently random: only a head may be new, whoever reads the model."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from script_fixtures import Tiny, make_model, read_json, run

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.tasks.label_names import head_in

pytest_plugins = ["script_fixtures"]

Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("classifier") / "model", sparse=False, head=True)


def changed(model: Path, folder: Path, weights: Callable[[Weights], Weights] = dict, **config: Any) -> Path:
    """A copy with other weights, or other entries in its config.json."""
    shutil.copytree(model, folder)
    save_file(weights(load_file(model / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(read_json(model / "config.json") | config))
    return folder


def without(*parts: str) -> Callable[[Weights], Weights]:
    return lambda weights: {name: value for name, value in weights.items() if not any(part in name for part in parts)}


FAULTS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "vocabulary": ({"vocab_size": 31}, ("bert.embeddings.word_embeddings.weight", "30 x 32", "31 x 32")),
    "positions": (
        {"max_position_embeddings": 40},
        ("bert.embeddings.position_embeddings.weight", "64 x 32", "40 x 32"),
    ),
    "types": ({"type_vocab_size": 3}, ("bert.embeddings.token_type_embeddings.weight", "2 x 32", "3 x 32")),
    "width": ({"intermediate_size": 48}, ("bert.encoder.layer.0.intermediate.dense", "64", "48", "more")),
    "more layers": ({"num_hidden_layers": 3}, ("bert.encoder.layer.2.", "has no weights", "more")),
    "fewer layers": ({"num_hidden_layers": 1}, ("bert.encoder.layer.1.", "no such block", "more")),
    "no LayerNorm": (
        {"weights": without("embeddings.LayerNorm.weight")},
        ("bert.embeddings.LayerNorm.weight", "has no weights"),
    ),
    "no embeddings": ({"weights": without("word_embeddings")}, ("bert.embeddings.word_embeddings.weight",)),
    "no block": ({"weights": without("layer.1.attention.self")}, ("bert.encoder.layer.1.attention.self.key.bias",)),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_only_a_head_may_be_new(fault: str, classifier: Path, tiny: Tiny, tmp_path: Path) -> None:
    """From a classifier and from a language model, in training; and wherever a trained model is read."""
    change, parts = FAULTS[fault]
    wrong = changed(classifier, tmp_path / "wrong", **change)
    language_model = changed(tiny.model, tmp_path / "language_model", **change)
    flags: dict[str, Any] = {
        "train_file": tiny.train,
        "num_train_epochs": 1,
        "save_strategy": "no",
        "output_dir": tmp_path / "out",
    }
    refusals = [
        run(model_name_or_path=wrong, do_train=True, **flags),
        run(model_name_or_path=language_model, do_train=True, **flags),
        run(model_name_or_path=wrong, do_eval=True, validation_file=tiny.validation, output_dir=tmp_path / "out"),
        run(**tiny.flags(distill_teacher=wrong, output_dir=tmp_path / "out")),
    ]
    for refused in refusals:
        assert refused.code == 2, refused.all
        for part in (*parts, "config.json and weights belong to different models"):
            assert part in refused.err, refused.err
    assert "--model_name_or_path" in refusals[0].err and "--distill_teacher" in refusals[3].err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["classifier.weight", "classifier.bias", "bert.pooler.dense.weight"])
def test_a_head_that_is_there_in_part(name: str, classifier: Path, tiny: Tiny, tmp_path: Path) -> None:
    part = changed(classifier, tmp_path / "part", without(name))
    with pytest.raises(UsageError, match=rf"no trained head: weights are missing .{re.escape(name)}"):
        sparse_accel.load(part)
    trained = run(
        model_name_or_path=part, do_train=True, train_file=tiny.train, output_dir=tmp_path / "out", max_steps=1
    )
    # Without its classifier a file has no head, and gets a new one; a classifier on a random pooler is nonsense.
    assert trained.code == (0 if name == "classifier.weight" else 2), trained.all


def test_another_number_of_outputs(classifier: Path, tmp_path: Path) -> None:
    names = {"a": 0, "b": 1, "c": 2}
    wrong = changed(classifier, tmp_path / "wrong", id2label=dict(enumerate(names)), label2id=names)
    with pytest.raises(UsageError, match=r"classifier\.bias is 2 in the file, but 3 by config\.json"):
        sparse_accel.load(wrong)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_git_lfs_pointer_is_said_to_be_one(name: str, classifier: Path, tiny: Tiny, tmp_path: Path) -> None:
    folder = changed(classifier, tmp_path / "cloned")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 90868376\n"
    (folder / name).write_text(pointer)
    flags: dict[str, Any] = {
        "train_file": tiny.train,
        "validation_file": tiny.validation,
        "output_dir": tmp_path / "out",
    }
    for asked in ({"do_train": True}, {"do_eval": True, "train_file": None}):
        refused = run(model_name_or_path=folder, **{**flags, **asked})
        assert refused.code == 2, refused.all
        assert name in refused.err and "Git LFS pointer" in refused.err and "git lfs pull" in refused.err


@pytest.mark.parametrize("kind", ["BertModel", "RobertaModel", "DistilBertModel"])
def test_an_encoder_with_more_blocks_than_its_configuration(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    """Its file has names without the encoder's prefix."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = getattr(transformers, kind.replace("Model", "Config"))(vocab_size=30, max_position_embeddings=64, **sizes)
    getattr(transformers, kind)(config).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy2(tiny.model / name, tmp_path / "model" / name)
    layers = "n_layers" if kind.startswith("Distil") else "num_hidden_layers"
    settings = read_json(tmp_path / "model" / "config.json")
    (tmp_path / "model" / "config.json").write_text(json.dumps(settings | {layers: settings[layers] - 1}))
    refused = run(
        model_name_or_path=tmp_path / "model", do_train=True, train_file=tiny.train, output_dir=tmp_path / "out"
    )
    assert refused.code == 2 and "no such block" in refused.err, refused.all


# --- labels in config.json --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "label2id",
    [None, {}, {"LABEL_0": 0, "LABEL_1": 1}, {"pos": 0, "neg": 1}, {"pos": "0", "neg": "1"}, {"POS": 0}],
    ids=str,
)
def test_id2label_decides(label2id: Any, classifier: Path, tmp_path: Path) -> None:
    labels: dict[str, Any] = {"id2label": {0: "pos", 1: "neg"}} | ({} if label2id is None else {"label2id": label2id})
    folder = changed(classifier, tmp_path / "model", **labels)
    config: Any = sparse_accel.load(folder).config
    assert config.id2label == {0: "pos", 1: "neg"} and config.label2id == {"pos": 0, "neg": 1}


@pytest.mark.parametrize(
    ("id2label", "label2id", "message"),
    [
        ({0: "pos", 1: "neg"}, {"neg": 0, "pos": 1}, "'neg' is output 1 in id2label, but 0 in label2id"),
        ({0: "pos", 1: "neg"}, {"NEG": 0}, "contradicts itself"),
        ({0: "pos", 1: "neg"}, {"neg": "first"}, "contradicts itself"),
        ({0: "pos", 1: "pos"}, {}, "duplicate name 'pos' in id2label"),
        ({1: "pos", 2: "neg"}, {}, "must number the outputs from 0; got 1, 2"),
    ],
)
def test_labels_that_contradict_each_other(
    id2label: dict[int, str], label2id: dict[str, Any], message: str, classifier: Path, tmp_path: Path
) -> None:
    folder = changed(classifier, tmp_path / "model", id2label=id2label, label2id=label2id)
    with pytest.raises(UsageError, match=message):
        sparse_accel.load(folder)


def test_names_that_only_label2id_has(classifier: Path, tmp_path: Path) -> None:
    unnamed = {0: "LABEL_0", 1: "LABEL_1"}
    config: Any = sparse_accel.load(
        changed(classifier, tmp_path / "model", id2label=unnamed, label2id={"neg": 1, "pos": 0})
    ).config
    assert config.id2label == {0: "pos", 1: "neg"}
    config = sparse_accel.load(changed(classifier, tmp_path / "half", id2label=unnamed, label2id={"neg": 1})).config
    assert config.id2label == unnamed


def test_scores_of_two_kinds(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="outputs for a regression: only one is supported"):
        sparse_accel.load(changed(classifier, tmp_path / "model", problem_type="regression"))


def test_names_are_those_of_the_outputs(classifier: Path, tmp_path: Path) -> None:
    config: Any = sparse_accel.load(changed(classifier, tmp_path / "model", id2label={1: 7, 0: "b"})).config
    assert head_in(config, "here").names == ["b", "7"]


# --- checkpoints of the old tool --------------------------------------------------------------------------------------


def test_a_checkpoint_that_sparseml_quantized(classifier: Path, tiny: Tiny, tmp_path: Path) -> None:
    """Each quantized layer was wrapped: `dense.module.weight`, and quantizers that are not ours next to it."""

    def wrapped(weights: Weights) -> Weights:
        result: Weights = {}
        for name, value in weights.items():
            layer, _, leaf = name.rpartition(".")
            quantized = "LayerNorm" not in name and "embeddings" not in name
            result[f"{layer}.module.{leaf}" if quantized else name] = value
            if quantized and leaf == "weight":
                result[f"{layer}.module.weight_fake_quant.scale"] = torch.ones(1)
                result[f"{layer}.quant.activation_post_process.zero_point"] = torch.zeros(1)
        return result

    folder = changed(classifier, tmp_path / "old", wrapped)
    with pytest.raises(UsageError, match="saved by SparseML after quantization-aware training"):
        sparse_accel.load(folder)
    flags: dict[str, Any] = {"train_file": tiny.train, "max_steps": 1, "learning_rate": 0.0, "do_train": True}
    plain = run(model_name_or_path=classifier, output_dir=tmp_path / "plain", **flags)
    done = run(model_name_or_path=folder, output_dir=tmp_path / "out", **flags)
    assert done.code == plain.code == 0, done.all
    assert "was saved by SparseML" in done.err
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "out"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b"{"),
        ("config.json", b"{}"),
        ("config.json", b'{"model_type": "bert", "hidden_size": "32"}'),  # TypeError, from transformers
        ("model.safetensors", b"\x40\0\0\0\0\0\0\0{"),
    ],
)
def test_a_damaged_file_is_said_to_be_one(
    name: str, content: bytes, classifier: Path, tiny: Tiny, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(classifier, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(UsageError, match=r"sparse_accel.load .*damaged: the folder contains no readable model"):
        sparse_accel.load(folder)
    refused = run(**tiny.flags(model_name_or_path=folder, output_dir=tmp_path / "out"))
    assert refused.code == 2 and "--model_name_or_path" in refused.err and "no readable model" in refused.err


def test_files_do_not_depend_on_the_cache(tiny: Tiny, tmp_path: Path) -> None:
    """A tokenizer remembers the truncation of its last call, which there is none of where rows are in the cache."""
    short = {"eval_strategy": "no", "do_eval": None, "save_strategy": "no", "recipe": None, "recipe_args": None}
    flags = tiny.flags(**{**short, "distill_teacher": None, "max_steps": 1, "cache_dir": tmp_path / "cache"})
    files = []
    for name in ("first", "second"):
        done = run(**flags, output_dir=tmp_path / name)
        assert done.code == 0, done.all
        files.append((tmp_path / name / "tokenizer.json").read_bytes())
    assert files[0] == files[1] and json.loads(files[0])["truncation"] is None
