"""What a Trainer with a recipe writes: model folders with exact zeros and quantizers, and checkpoints that resume.

model.safetensors, config.json   the model at this step: `from_pretrained` gives its float weights, with exact zeros
quantization.json                its quantizers: `sparse_accel.load` reads both
recipe_state.safetensors         only in a Trainer's checkpoint-N: step, masks, scores, ranges; and the weights that
                                 training needs and model.safetensors does not have: those under masks, and those of
                                 layers that were dropped
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparse_accel.errors import UsageError, first_line
from sparse_accel.models.files import QUANTIZATION_FILE, write_quantizers
from sparse_accel.nn.blocks import with_skipped, without_skipped
from sparse_accel.nn.layers import masks
from sparse_accel.recipe_run import RecipeRun
from sparse_accel.run_folder.checkpoints import RECIPE_STATE

_WEIGHT = "weight:"


def save_with_recipe(model: Any) -> None:
    """Makes `model.save_pretrained` write zeros where masks prune, and quantization.json; whoever calls it.

    A method of this one object, so that a copy of the model has its own.

    Raises:
        UsageError: the model already has a recipe.
    """
    if "save_pretrained" in vars(model):
        raise UsageError(
            "the model already has a recipe, of another Trainer or of a second callback: give each Trainer one recipe "
            "(RecipeMixin makes its own callback), and go on from a trained model by saving and loading it"
        )
    model.save_pretrained = MethodType(save_pretrained, model)


def save_pretrained(
    model: Any, folder: str | Path, is_main_process: bool = True, state_dict: Any = None, **options: Any
) -> None:
    """`PreTrainedModel.save_pretrained` of a model with masks and quantizers; same arguments.

    Raises:
        UsageError: with push_to_hub=True, which would upload the folder before its quantizers are there.
    """
    if options.get("push_to_hub"):
        raise UsageError(
            "save_pretrained(push_to_hub=True) uploads the model before its quantizers are written: call "
            "model.push_to_hub(...) or trainer.push_to_hub() instead"
        )
    with without_skipped(model):
        weights = weights_to_save(model, state_dict)
        type(model).save_pretrained(model, folder, is_main_process, weights, **options)
        if is_main_process:
            (Path(folder) / QUANTIZATION_FILE).unlink(missing_ok=True)  # of an earlier model in this folder
            write_quantizers(Path(folder), model)


def weights_to_save(model: nn.Module, state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Returns the weights of a plain model by name, with exact zeros where masks prune.

    Args:
        state: the weights of `model`, complete; None: `model.state_dict()`.
    """
    weights = dict(model.state_dict() if state is None else state)
    for name, mask in masks(model).items():
        weights[name] = weights[name].masked_fill(~mask.to(weights[name].device), 0.0)
    return weights


def write_state(folder: Path, run: RecipeRun, *, writes: bool) -> None:
    """Writes recipe_state.safetensors into a checkpoint. All processes must call it.

    Args:
        writes: whether this process writes the file.

    Raises:
        UsageError: the file cannot be written.
    """
    state, model = run.state_dict(), run.state.model
    if not writes:
        return
    with with_skipped(model):
        trained = dict(model.state_dict())
    with without_skipped(model):
        saved = weights_to_save(model)
    missing = {name: value for name, value in trained.items() if not _equal(value, saved.get(name))}
    state |= {f"{_WEIGHT}{name}": value for name, value in missing.items()}
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in state.items()}
    try:
        save_file(tensors, folder / RECIPE_STATE, metadata=_identity(run))
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{folder / RECIPE_STATE} cannot be written ({first_line(error)}). Free disk space") from error


def read_state(folder: Path, run: RecipeRun, *, with_weights: bool) -> None:
    """Restores what `write_state` wrote for the same recipe and model. All processes must call it, after `bind`.

    Args:
        with_weights: also the weights that model.safetensors does not have: training continues from here.

    Raises:
        UsageError: the checkpoint has no such file, or it belongs to another recipe, model or number of steps.
    """
    path = folder / RECIPE_STATE
    if not path.is_file():
        raise UsageError(
            f"{folder} has no {RECIPE_STATE}: it was written without this recipe, or with save_only_model=True, so its "
            "masks and ranges are not known. Resume from a checkpoint that a Trainer with RecipeMixin wrote"
        )
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{path} cannot be read ({first_line(error)}): resume from another checkpoint") from error
    _check_identity(folder, found, _identity(run))
    weights = {name.removeprefix(_WEIGHT): state.pop(name) for name in [*state] if name.startswith(_WEIGHT)}
    model = run.state.model
    device = next(model.parameters()).device
    try:
        run.load_state_dict({name: value.to(device) for name, value in state.items()})
        if with_weights:
            with with_skipped(model):
                unknown = model.load_state_dict(weights, strict=False).unexpected_keys
            if unknown:
                raise ValueError(f"the model has no weight {unknown[0]}")
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"{folder} belongs to another recipe or model ({first_line(error)})") from error


def _equal(one: Tensor, other: Tensor | None) -> bool:
    return other is not None and one.shape == other.shape and torch.equal(one, other)


def _identity(run: RecipeRun) -> dict[str, str]:
    """What a checkpoint and the run that resumes from it must have in common."""
    return {
        "steps an epoch": str(run.progress.steps_per_epoch),
        "modifiers": "\n".join(repr(modifier) for modifier in run.modifiers),
    }


def _check_identity(folder: Path, found: dict[str, str], own: dict[str, str]) -> None:
    """Raises UsageError with the first difference between `_identity` of a checkpoint and that of a run."""
    for name, value in own.items():
        pairs = zip_longest(found.get(name, "").split("\n"), value.split("\n"), fillvalue="nothing")
        for before, now in pairs:
            if before != now:
                raise UsageError(
                    f"{folder} belongs to another run: its {name} are {before}, but here they are {now}. Start from "
                    "the beginning, or resume with the earlier recipe, rows and batch size"
                )
