"""Layers that a recipe drops: when, which, and that everything that is saved agrees with the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loop import Session, assert_same, start
from places import golden
from recipe_texts import error_of
from tiny import make_albert, make_bert, make_tokenizer
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

import sparse_accel
from sparse_accel.errors import UsageError
from sparse_accel.models.files import save_model, write_quantizers
from sparse_accel.models.sparsity import sparsity_report
from sparse_accel.nn.layers import masks, quantizers
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.run_folder.checkpoints import load_checkpoint, save_checkpoint
from sparse_accel.run_folder.trainer_state import History

FIGURES = golden("params_and_layers")["layer_pruning"]
STEPS = 3  # an epoch
# Pruned from the start, quantized from 1; the middle one of three blocks is dropped in the third step.
EVERYTHING = """
modifiers:
  - !EpochRangeModifier {end_epoch: 2}
  - !MagnitudePruningModifier {start_epoch: 0, end_epoch: 1.5, final_sparsity: 0.8}
  - !QuantizationModifier {start_epoch: 1, disable_quantization_observer_epoch: 1.6}
  - !LayerPruningModifier {layers: [bert.encoder.layer.1], start_epoch: 0.6}
"""


def recipe(keys: str, *others: str, epochs: int = 2) -> str:
    lines = ["modifiers:", f"  - !EpochRangeModifier {{end_epoch: {epochs}}}", f"  - !LayerPruningModifier {{{keys}}}"]
    return "\n".join([*lines, *(f"  - !{other}" for other in others)])


def bert(blocks: int = 3, **settings: Any) -> Any:
    return make_bert(num_hidden_layers=blocks, initializer_range=0.1, **settings)


def batch() -> dict[str, Tensor]:
    ids = torch.randint(5, 30, (4, 9), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@torch.no_grad()
def logits(model: Any) -> Tensor:
    training = model.training
    found: Tensor = model.eval()(**batch()).logits
    model.train(training)
    return found


def attached(text: str, model: nn.Module) -> RecipeRun:
    run = RecipeRun(load_recipe(text))
    run.attach(model)
    return run


# --- SparseML's figures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", FIGURES["runs"], ids=str)
def test_dropped_when_and_how_sparseml_does(case: dict[str, Any]) -> None:
    """The logits are those of a BERT without the layer. SparseML drops it one forward later than its start_epoch."""
    model = bert(FIGURES["layers"], dropout=0.0)
    full, shorter = sum(p.numel() for p in model.parameters()), bert(FIGURES["layers"] - 1)
    state = {name: value for name, value in model.state_dict().items() if ".layer.2." not in name}
    shorter.load_state_dict({name.replace("layer.3.", "layer.2."): value for name, value in state.items()})
    before, without = logits(model), logits(shorter)
    begin = case.get("start_epoch", -1.0)
    run = attached(recipe(f"layers: {case['layers']}, start_epoch: {begin}", epochs=3), model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=2)
    for _, epoch, _, which in case["trace"]:
        run.step_begin()
        dropped = epoch >= begin
        assert dropped == (which == "removed") or epoch == begin
        assert torch.allclose(logits(model), without if dropped else before, atol=1e-6)
        run.step_end()
    run.finish()
    assert torch.allclose(logits(model), without, atol=1e-6)
    assert full - sum(p.numel() for p in model.parameters()) == FIGURES["full_params"] - case["params_left"]
    assert model.state_dict().keys() == shorter.state_dict().keys()


# --- everything that is saved -----------------------------------------------------------------------------------------


def assert_saved(folder: Path, model: Any) -> None:
    """The folder holds the model, with its quantizers in our reader and without in transformers'."""
    assert torch.allclose(logits(sparse_accel.load(folder)), logits(model), atol=1e-6)
    read, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    for quantizer in quantizers(model).values():
        quantizer.enabled = not quantizer.enabled
    off = logits(model) if not any(quantizer.enabled for quantizer in quantizers(model).values()) else None
    for quantizer in quantizers(model).values():
        quantizer.enabled = not quantizer.enabled
    assert off is None or torch.allclose(logits(read), off, atol=1e-6)


def phase(session: Session) -> tuple[bool, bool]:
    """Whether the layer is dropped, and whether the structure is final."""
    return "1 layer dropped" in session.run.phase(), session.run.structure_final()


def test_every_checkpoint_is_the_model_of_its_step_and_resumes_bit_for_bit(tmp_path: Path) -> None:
    history = History("eval_loss", False)
    phases: dict[int, tuple[bool, bool]] = {}

    def save(session: Session) -> None:
        accelerator, model = session.accelerator, session.model
        folder = save_checkpoint(tmp_path, accelerator, model, make_tokenizer(), session.run, history)
        step = session.run.progress.step
        kept = 3 if step <= 2 else 2  # dropped before the third step
        phases[step] = phase(session)
        assert_saved(folder, session.model)
        assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_hidden_layers == kept
        assert session.model.config.num_hidden_layers == (2 if step == 2 * STEPS else 3)  # type: ignore[union-attr]

    whole = start(EVERYTHING, model=bert()).train(save)
    for step in range(1, 2 * STEPS + 1):
        resumed = start(EVERYTHING, model=bert(seed=step))
        load_checkpoint(tmp_path / f"checkpoint-{step}", resumed.accelerator, resumed.run, History("eval_loss", False))
        if step < 2 * STEPS:
            assert phase(resumed) == phases[step]
            assert torch.equal(logits(resumed.model), logits(sparse_accel.load(tmp_path / f"checkpoint-{step}")))
        resumed.train()
        assert_same(whole, resumed)
    assert [dropped for dropped, _ in phases.values()] == [False, False, True, True, True, True]


def test_what_is_saved_names_the_layers_that_are_left(tmp_path: Path) -> None:
    """Masks and quantizers of the block go with it; those of the next one move up."""
    session = start(EVERYTHING, model=bert())
    seen: list[dict[str, Tensor]] = []
    session.train(lambda session: seen.append({name: mask.clone() for name, mask in masks(session.model).items()}))
    assert len(seen[-2]) == 3 * 6 + 2 and len(seen[-1]) == 2 * 6 + 2
    moved = {name.replace("layer.2.", "layer.1."): mask for name, mask in seen[-2].items() if "layer.1." not in name}
    assert moved.keys() == seen[-1].keys()
    save_model(tmp_path, session.accelerator, session.model, make_tokenizer())
    text = (tmp_path / "quantization.json").read_text()
    assert "layer.1.attention.self.query.weight_quantizer" in text and "layer.2." not in text
    assert_saved(tmp_path, session.model)
    report = sparsity_report(session.model)
    assert report["encoder_linear"]["weights"] == 2 * 8192 and "layer.2." not in str(report["layers"])


def test_sparsity_counts_what_would_be_saved() -> None:
    found = []
    session = start(EVERYTHING, model=bert())
    session.train(lambda session: found.append(sparsity_report(session.model)["encoder_linear"]["weights"]))
    assert found == [3 * 8192] * 2 + [2 * 8192] * 4


def test_an_own_loop_saves_with_transformers(tmp_path: Path) -> None:
    model = bert(dropout=0.0)
    run = attached(EVERYTHING, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    run.bind(None, model, optimizer, steps_per_epoch=STEPS)
    model.train()
    for _ in range(2 * STEPS):
        run.step_begin()
        outputs = model(**batch(), labels=torch.tensor([0, 1, 1, 0]))
        run.loss(outputs.loss, batch(), outputs).backward()
        run.grads_ready()
        optimizer.step()
        optimizer.zero_grad()
        run.step_end()
    run.finish()
    model.save_pretrained(tmp_path)
    write_quantizers(tmp_path, model)
    assert model.config.num_hidden_layers == 2
    assert_saved(tmp_path, model)
    run.finish()  # a second call changes nothing
    assert len(model.bert.encoder.layer) == 2


@pytest.mark.parametrize("begin", [-1, 0.6])
def test_at_once_ranges_are_of_the_shorter_model(begin: float) -> None:
    found = []
    for text in (recipe(f"layers: [bert.encoder.layer.1], start_epoch: {begin}", "QuantizationModifier {}"), None):
        model = bert(dropout=0.0)
        if text is None:  # the same in two runs
            attached(recipe("layers: [bert.encoder.layer.1]"), model)
            text = "modifiers:\n  - !QuantizationModifier {}"
        run = attached(text, model)
        run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
        model.eval()

        def forwards(model: Any = model) -> Any:
            model(**batch())
            yield

        run.apply_at_once(forwards)
        assert model.config.num_hidden_layers == 2
        found.append((logits(model), {name: q.scale for name, q in quantizers(model).items()}))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


# --- which, and together with what ------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", [-1, 0, 1])
@pytest.mark.parametrize(
    ("layers", "left"),
    [
        ("[bert.encoder.layer.0, bert.encoder.layer.3]", [1, 2]),
        ("'re:bert.encoder.layer.[123]$'", [0]),
        ("['re:.*1', bert.encoder.layer.1]", [0, 2, 3]),
        ("bert.encoder.layer.2", [0, 1, 3]),
    ],
)
def test_which_blocks(layers: str, left: list[int], begin: int) -> None:
    model = bert(4)
    blocks = list(model.bert.encoder.layer)
    run = attached(recipe(f"layers: {layers}, start_epoch: {begin}"), model)
    run.bind(None, model, torch.optim.SGD(model.parameters(), lr=0.0), steps_per_epoch=1)
    run.finish()
    assert list(model.bert.encoder.layer) == [blocks[index] for index in left]


def test_layers_may_go_one_after_another() -> None:
    text = recipe(
        "layers: [bert.encoder.layer.0]",
        "LayerPruningModifier {layers: [bert.encoder.layer.2], start_epoch: 1}",
        "LayerPruningModifier {layers: [bert.encoder.layer.1], start_epoch: 2}",
        epochs=3,
    )
    model = bert(4)
    blocks, counts = list(model.bert.encoder.layer), []

    def count(session: Session) -> None:
        counts.append(sparsity_report(session.model)["encoder_linear"]["weights"] // 8192)

    session = start(text, model=model).train(count)
    assert counts == [3] * STEPS + [2] * STEPS + [1] * STEPS
    assert list(model.bert.encoder.layer) == [blocks[1]]  # names are those of the model without its first one
    assert session.run.phase() == "1 layer dropped, 1 layer dropped, 1 layer dropped"
    assert [line for _, line in session.run.recipe.timeline()][:-1] == [  # type: ignore[union-attr]
        f"layers dropped: bert.encoder.layer.{index}" for index in (0, 2, 1)
    ]


def test_names_are_those_of_the_shortened_model() -> None:
    late = "ConstantPruningModifier {params: [bert.encoder.layer.2.output.dense.weight]}"
    with pytest.raises(UsageError) as caught:
        attached(recipe("layers: [bert.encoder.layer.0]", late), bert())
    for part in ("matches no parameter", "LayerPruningModifier removed bert.encoder.layer.0", "the shortened model"):
        assert part in str(caught.value)
    model = bert(sparsity=0.5)
    kept = model.bert.encoder.layer[2].output.dense.weight
    attached(recipe("layers: [bert.encoder.layer.0]", late.replace("layer.2.", "layer.1.")), model)
    assert model.bert.encoder.layer[1].output.dense.weight is kept and len(masks(model)) == 1


def test_a_note_says_what_stays() -> None:
    run = attached(recipe("layers: 're:.*[12]$', start_epoch: 1"), bert())
    assert run.notices == [
        "LayerPruningModifier: bert.encoder.layer.1, bert.encoder.layer.2 dropped from epoch 1: 1 of 3 stay"
    ]
    run = attached(recipe("layers: [bert.encoder.layer.1]"), bert())
    assert run.notices == ["LayerPruningModifier: bert.encoder.layer.1 removed: 2 of 3 stay"]


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "key", "part"),
    [
        ("layers: 2", "layers", "expected a list"),
        ("layers: [2]", "layers", "entry 1: expected a string, got 2"),
        ("layers: []", "layers", "must not be empty"),
        ("layers: ''", "layers", "must not be empty"),
        ("layers: __ALL__", "layers", "__ALL__ would drop every layer"),
        ("layers: [__ALL_PRUNABLE__]", "layers", "would drop every layer"),
        ("layers: 're:('", "layers", "is not a regular expression"),
        ("layers: [x], start_epoch: 1, end_epoch: 2", "end_epoch", "does not come back"),
        ("start_epoch: 1", "layers", "needs layers"),
    ],
)
def test_refused_when_the_recipe_is_read(keys: str, key: str, part: str) -> None:
    error = error_of(recipe(keys))
    assert error.key == key and part in str(error), error


def test_two_at_the_start_are_refused() -> None:
    error = error_of(recipe("layers: [a]", "LayerPruningModifier {layers: [b], start_epoch: 0}"))
    assert error.key == "layers" and "name all of them in one" in str(error)


def test_update_frequency_has_no_effect() -> None:
    read = load_recipe(recipe("layers: [a], update_frequency: 0.5"))
    assert "update_frequency has no effect: layers are dropped once" in read.notes[0]


@pytest.mark.parametrize("begin", [-1, 1])
@pytest.mark.parametrize(
    ("layers", "part"),
    [
        ("[bert.encoder.layer.3]", "Did you mean 'bert.encoder.layer.*These are: bert.encoder.layer.0 to bert.*2"),
        ("[bert.encoder.layer.1.output]", "'bert.encoder.layer.1.output' is not a layer that can be dropped"),
        ("[bert.encoder.layer]", "is not a layer that can be dropped"),
        ("['re:layer.1']", "'re:layer.1' is not a layer"),
        ("['re:bert']", "all 3 layers would be dropped, but one must stay"),
    ],
)
def test_refused_for_the_model(layers: str, part: str, begin: int) -> None:
    model = bert()
    with pytest.raises(UsageError, match=part):
        attached(recipe(f"layers: {layers}, start_epoch: {begin}"), model)
    assert len(model.bert.encoder.layer) == model.config.num_hidden_layers == 3


@pytest.mark.parametrize(
    ("first", "second", "part"),
    [
        ("[bert.encoder.layer.0]", "[bert.encoder.layer.0]", "two modifiers drop bert.encoder.layer.0"),
        ("[bert.encoder.layer.0]", "'re:.*[12]$'", "all 3 layers would be dropped"),
    ],
)
def test_two_modifiers_that_do_not_go_together(first: str, second: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        attached(
            recipe(f"layers: {first}, start_epoch: 1", f"LayerPruningModifier {{layers: {second}, start_epoch: 1.5}}"),
            bert(),
        )


@pytest.mark.parametrize("begin", [-1, 1])
def test_shared_layers_are_refused(begin: int) -> None:
    with pytest.raises(UsageError, match=r"cannot be dropped: this albert has no list.*share the weights of 1"):
        attached(recipe(f"layers: [albert.encoder.albert_layer_groups.0], start_epoch: {begin}"), make_albert())
