"""Tiny classifiers of every architecture that can be exported, quantized, as folders; the pieces of an export, and its
script in this process. Test modules that use its fixtures name it in `pytest_plugins` (hence PYTEST_DONT_REWRITE).
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from datasets import Dataset
from places import ROOT
from script_fixtures import Outcome, run_program, sentences, words, write_csv
from tiny import (
    SIZES,
    make_albert,
    make_bert,
    make_distilbert,
    make_roberta,
    make_texts,
    make_tokenizer,
)
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    ElectraConfig,
    ElectraForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
)

from sparse_accel.export import deployment, measure
from sparse_accel.export.texts import Texts
from sparse_accel.export.trace import trace
from sparse_accel.fingerprints import fingerprint_of_weights
from sparse_accel.models.files import write_quantizers
from sparse_accel.modifiers.quantization import QuantizationModifier
from sparse_accel.nn.layers import quantizers
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.tasks import TextClassification
from sparse_accel.tasks.label_names import Head

SCRIPT = ROOT / "scripts" / "export_onnx.py"
# Tracing takes two seconds a block: where two blocks are traced as one is, one is enough.
ONE_BLOCK = {**SIZES, "num_hidden_layers": 1}


def make_sparse_bert(**settings: Any) -> nn.Module:
    """A BERT whose weights are large enough for its decisions to stand apart, 90% of its encoder zero."""
    return make_bert(sparsity=0.9, initializer_range=0.2, **settings)


def make_electra() -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = ElectraForSequenceClassification(ElectraConfig(**ONE_BLOCK, embedding_size=16))
    return model


def make_modernbert() -> nn.Module:
    """Rotary positions, local and global attention in turn, no biases."""
    torch.manual_seed(0)
    special: dict[str, Any] = {"cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3}
    layers: dict[str, Any] = {"local_attention": 8, "layer_types": ["full_attention", "sliding_attention"]}
    config = ModernBertConfig(**SIZES, **special, **layers)
    model: nn.Module = ModernBertForSequenceClassification(config)
    return model


def make_deberta() -> nn.Module:
    """Relative positions, looked up in an embedding that no forward calls."""
    torch.manual_seed(0)
    relative: dict[str, Any] = {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
        "position_buckets": 16,
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "type_vocab_size": 0,
    }
    model: nn.Module = DebertaV2ForSequenceClassification(DebertaV2Config(**ONE_BLOCK, **relative))
    return model


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "bert": make_sparse_bert,
    "distilbert": functools.partial(make_distilbert, blocks=1),
    "roberta": functools.partial(make_roberta, blocks=1),
    "albert": make_albert,
    "electra": make_electra,
    "modernbert": make_modernbert,
    "deberta": make_deberta,
}


def vary(model: nn.Module) -> None:
    """Gives every norm and bias values of its own: fresh ones are all ones and zeros, and could change places."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def quantize(model: nn.Module, **settings: Any) -> nn.Module:
    """Puts quantizers into a model, on and frozen, with ranges from real forwards. Outputs of Linears stay in float
    unless the settings say otherwise."""
    outputs = {} if {"scheme", "tensorrt"} & settings.keys() else {"quantize_linear_activations": False}
    modifier = QuantizationModifier(**{**outputs, **settings})
    run = RecipeRun()
    run.attach(model)
    modifier.attach(run.state)
    model.train()
    for quantizer in quantizers(model).values():
        quantizer.enabled = quantizer.observing = True
    for rows in (make_texts(32, seed=5)[0], make_texts(32, seed=6)[0]):
        batch = encoded(model, rows)
        with torch.no_grad():
            model(**batch)
    for name, quantizer in list(quantizers(model).items()):
        quantizer.observing = False
        if not quantizer.ready:  # a layer that no forward calls
            layer_name, _, which = name.rpartition(".")
            setattr(model.get_submodule(layer_name), which, None)
    return model.eval()


def quantize_outputs(model: nn.Module, rows: list[str]) -> nn.Module:
    """Puts quantizers into a model, on, for outputs too, with ranges from one forward of these sentences."""
    modifier = QuantizationModifier(quantize_linear_activations=True)
    run = RecipeRun()
    run.attach(model)
    modifier.attach(run.state)
    for quantizer in quantizers(model).values():
        quantizer.enabled = quantizer.observing = True
    with torch.no_grad():
        model.train()(**encoded(model, rows))
    return model.eval()


def encoded(model: nn.Module, rows: list[str]) -> dict[str, torch.Tensor]:
    batch = dict(make_tokenizer()(rows, padding=True, return_tensors="pt"))
    if "istil" in type(model).__name__ or "Modern" in type(model).__name__:
        batch.pop("token_type_ids")
    return batch


def texts(count: int = 40) -> Texts:
    """Sentences of 3 to 14 words, with labels."""
    rows, labels = make_texts(count, seed=9)
    task = TextClassification.of_sentences(Head(["0", "1"]), rows)
    return Texts("made here", Dataset.from_dict({**make_tokenizer()(rows), "labels": labels}), task, "test")


def write_folder(folder: Path, model: nn.Module) -> Path:
    """What a training run leaves of a model: weights, configuration, tokenizer, quantizers."""
    folder.mkdir(parents=True, exist_ok=True)
    saved: Any = model
    saved.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    write_quantizers(folder, model)
    return folder


# --- the script, in this process --------------------------------------------------------------------------------------


def export(*arguments: str, **flags: Any) -> Outcome:
    """Runs the script's main program in this process."""
    return run_program(SCRIPT, [*arguments, *words(**flags)])


def copy_of(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "model"))


_TRACED: dict[tuple[str, ...], onnx.ModelProto] = {}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures for no longer than it must, and traces a model's graph once, however often it is exported."""
    monkeypatch.setattr(measure, "_SECONDS", 0.0)

    def trace_once(model: Any, tokenizer: Any, **settings: Any) -> onnx.ModelProto:
        key = (str(model.config), fingerprint_of_weights(model), str(list(quantizers(model))), str(settings))
        if key not in _TRACED:
            _TRACED[key] = trace(model, tokenizer, **settings)
        return _TRACED[key]

    monkeypatch.setattr(deployment, "trace", trace_once)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A quantized sparse BERT as a training run leaves it, beside its data."""
    home = tmp_path_factory.mktemp("runs")
    model = make_sparse_bert()
    vary(model)
    folder = write_folder(home / "sparse_quantized", quantize(model))
    data = write_csv(home / "validation.csv", sentences(30, seed=4, labels=("LABEL_0", "LABEL_1")))
    settings = {"validation_file": str(data), "max_seq_length": 32, "seed": 1, "do_train": True, "do_eval": True}
    (folder / "arguments.json").write_text(json.dumps(settings))
    (folder / "train_results.json").write_text(json.dumps({"quantized_linears": 14}))
    return folder
