"""A recipe in a SentenceTransformerTrainer: masks, quantizers, gradients, resume, and what is saved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trainers
from datasets import Dataset
from script_fixtures import make_model, sentences
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.losses import (
    CachedMultipleNegativesRankingLoss,
    MatryoshkaLoss,
    MSELoss,
    MultipleNegativesRankingLoss,
)
from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
from torch.nn.functional import cosine_similarity
from trainers import arguments, losses_of

from sparse_accel.errors import UsageError
from sparse_accel.integrations import RecipeCallback, RecipeMixin, TextTeacher, load_sentence_transformer
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


# --- distillation -----------------------------------------------------------------------------------------------------


def following(*others: str, hardness: float = 0.3) -> str:
    lines = ["!EpochRangeModifier {end_epoch: 1}", f"!DistillationModifier {{hardness: {hardness}}}", *others]
    return "modifiers:\n" + "\n".join(f"  - {line}" for line in lines)


@pytest.fixture(scope="module")
def teacher(start: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sentence transformer with the words of the student and other weights."""
    folder = tmp_path_factory.mktemp("teacher")
    transformer = Transformer(str(start), max_seq_length=16)
    torch.manual_seed(1)
    for weight in transformer.auto_model.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    SentenceTransformer(modules=[transformer, Pooling(32)], device="cpu").save(str(folder))
    return folder


@pytest.mark.parametrize(("loss", "columns"), [("cosine", 2), ("mse", 2), ("cosine", 4)])
def test_a_student_follows_a_teacher(start: Path, teacher: Path, tmp_path: Path, loss: str, columns: int) -> None:
    """Each step's loss is that of the library and the mean distance of all texts, weighted by hardness; also where a
    loss embeds several columns in one forward."""
    texts = [row["text"] for row in sentences(24, seed=1)]
    rows = Dataset.from_dict({f"text_{n}": texts[n : n + 20] for n in range(columns)})
    steps: list[Any] = []

    class Kept(EmbeddingTrainer):
        def training_step(self, model: Any, inputs: Any, *args: Any, **options: Any) -> Any:
            steps.append(dict(inputs))
            return super().training_step(model, inputs, *args, **options)

    given = str(teacher) if loss == "cosine" else TextTeacher(str(teacher), loss)
    trainer = make_trainer(start, tmp_path, following(), kind=Kept, teacher=given, train_dataset=rows)
    trainer.train()

    model, frozen = make_embedder(start).train(), SentenceTransformer(str(teacher), device="cpu").eval()
    loss_of = MultipleNegativesRankingLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for step, (batch, logged) in enumerate(zip(steps, losses_of(trainer), strict=True)):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * (1 - step / len(steps))
        parts = [trainer.collect_features(dict(batch))[0] for _ in range(3)]
        task = loss_of(parts[0], None)
        ours = torch.cat([model(part)["sentence_embedding"] for part in parts[1]])
        with torch.no_grad():
            theirs = torch.cat([frozen(part)["sentence_embedding"] for part in parts[2]])
        apart = (ours - theirs).square().mean() if loss == "mse" else (1 - cosine_similarity(ours, theirs)).mean()
        total = 0.7 * task + 0.3 * apart
        assert logged == pytest.approx(float(total), abs=1e-5) and float(apart) > 1e-4
        entry = trainer.state.log_history[step]
        assert entry["task_loss"] == pytest.approx(float(task), abs=1e-5)
        assert entry["distillation_loss"] == pytest.approx(float(apart), abs=1e-5)
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert len(steps) == 3


def test_a_trainer_of_another_model_has_no_texts_to_follow(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="teacher is a TextTeacher, whose embeddings a SentenceTransformer follows"):
        trainers.make_trainer(tmp_path, following(), teacher=TextTeacher(str(teacher)))


def test_evaluations_have_the_loss_of_the_library_alone(start: Path, teacher: Path, tmp_path: Path) -> None:
    trainer = make_trainer(start, tmp_path, following(hardness=1.0), teacher=str(teacher))
    found = trainer.evaluate(pairs())["eval_loss"]
    model = trainer.model.eval()
    parts = [trainer.collect_features(batch)[0] for batch in trainer.get_eval_dataloader(pairs())]
    with torch.no_grad():
        losses = [(float(MultipleNegativesRankingLoss(model)(part, None)), len(part[0]["input_ids"])) for part in parts]
    assert found == pytest.approx(sum(loss * rows for loss, rows in losses) / 19, abs=1e-5)


def test_teachers_that_cannot_be_followed(start: Path, teacher: Path, tmp_path: Path) -> None:
    def refusal(given: Any, recipe: str = "", **options: Any) -> str:
        with pytest.raises(UsageError) as found:
            make_trainer(start, tmp_path, recipe or following(), teacher=given, **options).train()
        return str(found.value)

    student = make_embedder(start)
    assert "has no embeddings of texts" in refusal(encoder_of(student))
    assert "copy.deepcopy(model)" in refusal(student, model=student)
    narrow = make_embedder(start)
    narrow.append(Dense(32, 8))
    assert "width 8, the model of width 32" in refusal(narrow)
    shorter = make_embedder(start)
    shorter.max_seq_length = 8
    assert "lower max_seq_length" in refusal(shorter)
    other = make_model(tmp_path / "other", sparse=False, head=True, vocabulary=["film", "good"])
    assert "another tokenizer" in refusal(make_embedder(other))
    hidden = refusal(str(teacher), following("!HiddenStateDistillationModifier {}"))
    assert "HiddenStateDistillationModifier compares hidden_states" in hidden and "DistillationModifier" in hidden
    for loss in (CachedMultipleNegativesRankingLoss, matryoshka):
        assert "each of the 16 texts of a batch once" in refusal(str(teacher), loss=loss)


def matryoshka(model: SentenceTransformer) -> MatryoshkaLoss:
    return MatryoshkaLoss(model, MultipleNegativesRankingLoss(model), [32, 16])


def test_a_loss_of_sentence_transformers_can_distill_too(start: Path, tmp_path: Path) -> None:
    """A teacher's embeddings as labels."""
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
