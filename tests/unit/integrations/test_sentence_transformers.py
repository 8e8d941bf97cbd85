"""A recipe in a SentenceTransformerTrainer: masks, quantizers, gradients, resume, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from script_fixtures import make_model, sentences
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import MSELoss, MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from trainers import arguments, losses_of

from sparse_accel.errors import UsageError
from sparse_accel.integrations import RecipeCallback, RecipeMixin, load_sentence_transformer
from sparse_accel.integrations.embedding_models import encoder_of
from sparse_accel.nn.layers import masks, quantizers
from sparse_accel.recipe import load_recipe
from sparse_accel.recipe_run import RecipeRun

RECIPE = """
modifiers:
  - !EpochRangeModifier {end_epoch: 3}
  - !LearningRateFunctionModifier {lr_func: linear, init_lr: 0.005, final_lr: 0.001, end_epoch: 3}
  - !MovementPruningModifier
      {end_epoch: 1.5, final_sparsity: 0.8, straight_through: true, params: 're:encoder.*dense.weight'}
  - !QuantizationModifier {start_epoch: 1, submodules: [encoder], disable_quantization_observer_epoch: 2}
"""
MAGNITUDE = RECIPE.replace("MovementPruning", "MagnitudePruning").replace(", straight_through: true", "")
TEXTS = ["good film", "the plot was very boring", "a lovely scene"]


class EmbeddingTrainer(RecipeMixin, SentenceTransformerTrainer):
    """The two lines of a user."""


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain transformer with its tokenizer, without dropout."""
    rates: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    return make_model(tmp_path_factory.mktemp("embeddings") / "model", sparse=False, head=True, **rates)


def make_embedder(start: Path) -> SentenceTransformer:
    transformer = Transformer(str(start), max_seq_length=16)
    return SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu")


def pairs() -> Dataset:
    rows = sentences(20, seed=1)
    return Dataset.from_dict({"anchor": [r["text"] for r in rows[:-1]], "positive": [r["text"] for r in rows[1:]]})


def make_trainer(start: Path, folder: Path, recipe: str = RECIPE, **settings: Any) -> Any:
    model = settings.pop("model", None) or make_embedder(start)
    loss = settings.pop("loss", MultipleNegativesRankingLoss)(model)
    names = ("kind", "teacher", "callbacks", "train_dataset")
    options: dict[str, Any] = {name: settings.pop(name) for name in names if name in settings}
    kind = options.pop("kind", EmbeddingTrainer)
    arguments(folder)  # for a new state of Accelerate
    args = SentenceTransformerTrainingArguments(
        **{
            "output_dir": str(folder),
            "use_cpu": True,
            "per_device_train_batch_size": 8,
            "learning_rate": 5e-3,
            "optim": "adamw_torch",
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            **settings,
        }
    )
    if issubclass(kind, RecipeMixin):
        options["recipe"] = recipe
    return kind(model=model, args=args, loss=loss, **{"train_dataset": pairs(), **options})


def own_losses(start: Path, trainer: Any, steps: list[Any]) -> tuple[list[float], Any]:
    """A loop of one's own over the same batches, with the same loss."""
    model = make_embedder(start)
    loss_of = MultipleNegativesRankingLoss(model)
    run = RecipeRun(load_recipe(RECIPE))
    run.attach(encoder_of(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    run.bind(None, model, optimizer, steps_per_epoch=3)
    losses = []
    model.train()
    for batch in steps:
        run.step_begin()
        loss = loss_of(*trainer.collect_features(batch))
        loss.backward()
        run.grads_ready()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        run.step_end()
        losses.append(float(loss.detach()))
    run.finish()
    return losses, model


def test_equals_a_loop_of_ones_own(start: Path, tmp_path: Path) -> None:
    steps: list[Any] = []

    class Kept(EmbeddingTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            steps.append(dict(inputs))
            return super().training_step(model, inputs, *args, **options)

    trainer = make_trainer(start, tmp_path, kind=Kept)
    trainer.train()
    losses, model = own_losses(start, trainer, steps)
    assert len(losses) == 9 and losses[0] != losses[-1]
    assert losses_of(trainer) == pytest.approx(losses, abs=1e-6)
    for (name, one), other in zip(trainer.model.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(one == 0, other == 0), name
        assert float((one - other).abs().max()) <= 1e-6, name
    found = masks(encoder_of(trainer.model))
    zeros = 1 - sum(int(mask.sum()) for mask in found.values()) / sum(mask.numel() for mask in found.values())
    assert zeros == pytest.approx(0.8, abs=0.01)
    assert trainer.state.log_history[-2]["sparsity"] == pytest.approx(0.8, abs=0.01)


def test_what_is_saved(start: Path, tmp_path: Path) -> None:
    trainer = make_trainer(start, tmp_path, save_strategy="epoch")
    trainer.train()
    trainer.save_model(str(tmp_path / "final"))
    wanted = trainer.model.eval().encode(TEXTS)
    for folder in (tmp_path / "final", tmp_path / "checkpoint-9"):
        loaded = load_sentence_transformer(folder, device="cpu")
        assert (loaded.encode(TEXTS) == wanted).all()
        assert len(quantizers(loaded)) == len(quantizers(trainer.model))
        floats = SentenceTransformer(str(folder), device="cpu")
        assert not quantizers(floats) and not (floats.encode(TEXTS) == wanted).all()
    query = encoder_of(SentenceTransformer(str(tmp_path / "checkpoint-3"), device="cpu")).encoder.layer[0].output.dense
    assert float((query.weight == 0).float().mean()) > 0.3


@pytest.mark.parametrize("step", [2, 6, 9])
def test_resumes_to_the_same_bytes(start: Path, tmp_path: Path, step: int) -> None:
    whole, resumed = (make_trainer(start, tmp_path, save_strategy="steps", save_steps=1) for _ in range(2))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    for (name, one), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
    assert (whole.model.encode(TEXTS) == resumed.model.encode(TEXTS)).all()


def test_callback_alone(start: Path, tmp_path: Path) -> None:
    alone = make_trainer(start, tmp_path, kind=SentenceTransformerTrainer, callbacks=[RecipeCallback(MAGNITUDE)])
    alone.train()
    alone.save_model(str(tmp_path / "final"))
    loaded = load_sentence_transformer(tmp_path / "final", device="cpu")
    assert (loaded.encode(TEXTS) == alone.model.eval().encode(TEXTS)).all()


def test_distillation_is_a_loss_of_sentence_transformers(start: Path, tmp_path: Path) -> None:
    """With a DistillationModifier it is refused; a teacher's embeddings as labels are the way."""
    with pytest.raises(UsageError) as found:
        recipe = f"{RECIPE}  - !DistillationModifier {{hardness: 0.5}}\n"
        make_trainer(start, tmp_path, recipe, teacher=encoder_of(make_embedder(start)))
    assert "DistillationModifier: the loss of a SentenceTransformer is computed from embeddings" in str(found.value)
    assert "such as MSELoss with embeddings of the teacher" in str(found.value)
    texts = [row["text"] for row in sentences(20, seed=1)]
    labels = make_embedder(start).encode(texts).tolist()
    rows = Dataset.from_dict({"sentence": texts, "label": labels})
    trainer = make_trainer(start, tmp_path, MAGNITUDE, loss=MSELoss, train_dataset=rows)
    trainer.train()
    losses = losses_of(trainer)
    assert 0 < losses[0] < max(losses)  # the student began as the teacher, with its first masks


def test_second_order_and_other_models_are_refused(start: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\(BaseTrainer.compute_loss\)"):
        recipe = "modifiers: [!OBSPruningModifier {end_epoch: 2, update_frequency: 1, final_sparsity: 0.8}]\n"
        make_trainer(start, tmp_path, recipe)
    with pytest.raises(UsageError, match="Sequential has 0 transformers among its modules"):
        encoder_of(torch.nn.Sequential(torch.nn.Linear(2, 2)))
