"""What a recipe cannot do in a Trainer, with the reasons; docs/trainer.md has the same list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from transformers import Trainer, TrainingArguments

from sparse_accel.distributed.environment import is_requested
from sparse_accel.errors import UsageError, listed, with_article
from sparse_accel.modifiers import Modifier

if TYPE_CHECKING:
    from sparse_accel.recipe_run import RecipeRun

_USE_MIXIN = "use RecipeMixin: class MyTrainer(RecipeMixin, Trainer)"


def check_arguments(args: TrainingArguments, trainer: Trainer | None) -> None:
    """Refuses TrainingArguments under which a recipe would give another model than it says.

    Args:
        trainer: that of RecipeMixin; None: the callback is alone.

    Raises:
        UsageError: names the argument, the reason, and what to do.
    """
    found = next(_refused(args), None) or (next(_refused_alone(args), None) if trainer is None else None)
    if found:
        raise UsageError(found)


def _refused(args: Any) -> Iterator[str]:
    otherwise = "launch one process a GPU with accelerate_configs/ddp.yaml, or use a loop of your own (README)"
    if args.deepspeed or is_requested("DEEPSPEED"):
        yield f"DeepSpeed: a Trainer saves and loads its sharded weights past the recipe, without masks: {otherwise}"
    if args.fsdp or is_requested("FSDP"):
        yield f"FSDP: a Trainer saves and loads its sharded weights past the recipe, without masks: {otherwise}"
    if args.parallelism_config is not None:
        yield f"parallelism_config: masks and ranges are not split over processes: {otherwise}"
    if args.n_gpu > 1:
        yield (
            f"one process has {args.n_gpu} GPUs, so the Trainer copies the model to each in every step, and what "
            f"quantizers observe in the copies is lost: {otherwise}"
        )
    if args.auto_find_batch_size:
        yield (
            "auto_find_batch_size starts again after steps of the recipe have changed masks and ranges: find the batch "
            "size first, and set it"
        )
    if args.fp16_full_eval or args.bf16_full_eval:
        yield (
            "fp16_full_eval and bf16_full_eval round the ranges of quantizers to 16 bits when they convert the model: "
            "leave them out, and use bf16 for training"
        )
    if args.use_liger_kernel:
        yield "use_liger_kernel replaces layers after they have got masks and quantizers: leave it out"
    if args.torch_compile:
        yield (
            "torch_compile: a Trainer compiles the model for fixed shapes, and each phase of quantization needs graphs "
            "of its own, so that it compiles for most of the time: leave it out, or use --torch_compile of a script of "
            "this package"
        )
    optimizer = str(getattr(args.optim, "value", args.optim))
    if "lomo" in optimizer or optimizer.endswith("layerwise"):
        yield f"optim {optimizer} updates weights in the backward, before gradients are complete: use adamw_torch"


def _refused_alone(args: Any) -> Iterator[str]:
    if args.load_best_model_at_end:
        yield f"load_best_model_at_end: a Trainer does not tell a callback which checkpoint it loads: {_USE_MIXIN}"
    if args.world_size > 1 and args.ddp_broadcast_buffers is not False:
        yield (
            "DDP would overwrite what the quantizers of each process observe with that of the first: set "
            f"ddp_broadcast_buffers=False in TrainingArguments, or {_USE_MIXIN}"
        )


def check_alone(modifiers: list[Modifier]) -> None:
    """Refuses modifiers that need the loss or gradients of a step, which a callback does not get.

    Raises:
        UsageError: names the first of them.
    """
    for modifier in modifiers:
        kind = type(modifier)
        changed = [hook for hook in ("loss_terms", "task_weight", "grads_ready") if _overrides(kind, hook)]
        if changed or modifier.samples_gradients:
            what = "the loss" if "loss_terms" in changed else "gradients before they are clipped"
            raise UsageError(
                f"{modifier.place + ': ' if modifier.place else ''}{modifier.name} needs {what}, and a Trainer gives a "
                f"callback neither (on_pre_optimizer_step comes after clipping): {_USE_MIXIN}"
            )


def _overrides(kind: type[Modifier], hook: str) -> bool:
    return getattr(kind, hook) is not getattr(Modifier, hook)


def check_model(model: Any, encoder: Any) -> None:
    """Refuses models whose files could not have what a recipe makes of them.

    Args:
        model: of the Trainer.
        encoder: the Hugging Face model that the recipe acts on.

    Raises:
        UsageError: names the kind of model.
    """
    if hasattr(encoder, "peft_config"):
        raise UsageError(
            "PEFT: the files of an adapter do not have the weights that masks and quantizers belong to: merge the "
            "adapter first (merge_and_unload), and train that model"
        )
    if not hasattr(encoder, "save_pretrained"):
        raise UsageError(
            f"{type(model).__name__} has no save_pretrained, so a Trainer saves it without masks and quantizers: use a "
            "model of transformers or sentence-transformers, or a loop of your own (README)"
        )


def check_embeddings(modifiers: Sequence[Modifier], model: Any) -> None:
    """Refuses modifiers that compare more than embeddings, for a model of sentence-transformers.

    Raises:
        UsageError: names the first of them.
    """
    for modifier in modifiers:
        if others := modifier.teacher_outputs - {"logits", "sentence_embedding"}:
            raise UsageError(
                f"{modifier.place + ': ' if modifier.place else ''}{modifier.name} compares {listed(sorted(others))}, "
                f"but a loss of {with_article(type(model).__name__)} runs the transformer several times: leave it "
                "out, or use scripts/sentence_embedding.py. A DistillationModifier compares embeddings"
            )


def check_losses(run: RecipeRun, trainer: Any) -> None:
    """Refuses modifiers that need another loss than this Trainer computes. Call it after `run.attach`.

    Raises:
        UsageError: names the modifier, and what it does not get.
    """
    for modifier in run.modifiers:
        where = f"{modifier.place}: {modifier.name}" if modifier.place else modifier.name
        if modifier.samples_gradients and (another := _another_loss(trainer)):
            raise UsageError(
                f"{where} draws gradient samples of the loss that the model itself computes, but this Trainer trains "
                f"on another ({another}): use MovementPruningModifier or MagnitudePruningModifier"
            )
        if modifier.needs_gradients and trainer.accelerator.mixed_precision == "fp16":
            raise UsageError(
                f"{where} reads gradients, which a Trainer unscales only when it clips them, after the modifiers: use "
                "bf16 instead of fp16, or a script of this package"
            )


def _another_loss(trainer: Any) -> str:
    """Returns what makes a Trainer's loss another than the model's own; empty: it is the model's."""
    if trainer.compute_loss_func is not None:
        return "compute_loss_func"
    if trainer.label_smoother is not None:
        return "label_smoothing_factor"
    kinds = [kind for kind in type(trainer).__mro__ if "compute_loss" in vars(kind) and kind.__module__ != _MIXIN]
    return "" if kinds[0] is Trainer else f"{kinds[0].__name__}.compute_loss"


_MIXIN = "sparse_accel.integrations.mixin"


def overridden(args: TrainingArguments, run: RecipeRun) -> list[str]:
    """Returns a line for each of the TrainingArguments that has another value than its default, and that the recipe
    overrides."""
    lines = []
    if run.max_epochs and _is_given(args, "num_train_epochs") and args.num_train_epochs != run.max_epochs:
        lines.append(f"num_train_epochs {args.num_train_epochs:g} is overridden: the recipe runs {run.max_epochs}")
    for setting, names in _SETTINGS.items():
        given = [name for name in names if _is_given(args, name)]
        found = [modifier for modifier in run.modifiers if modifier.setting == setting]
        # A Trainer's optimizer has two groups: weights with decay, and biases and norms.
        starts = {n: min((m.span[0] for m in found if m.covers_group(n)), default=None) for n in range(2)}
        if given and found:
            parts = [f"group {n} from epoch {start:g} on" for n, start in starts.items() if start is not None]
            scope = "" if set(starts.values()) == {0.0} else f" for parameter {', '.join(parts)}"
            lines.append(f"{', '.join(given)} of TrainingArguments: overridden{scope}, because the recipe sets it")
    return lines


# What overrides which arguments, by the key of the optimizer's parameter groups.
_SETTINGS = {"lr": ("learning_rate", "lr_scheduler_type", "warmup_steps"), "weight_decay": ("weight_decay",)}


def _is_given(args: Any, name: str) -> bool:
    return bool(getattr(args, name) != type(args).__dataclass_fields__[name].default)
