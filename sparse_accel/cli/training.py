"""The flags that all training programs share: model, data, training, evaluation, saving, machine; and their checks.

Names and meanings are those of SparseML's commands and of the Hugging Face Trainer. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sparse_accel.cli.data import Data
from sparse_accel.cli.parser import check_bounds, expand_paths, flag
from sparse_accel.cli.refused import REFUSED
from sparse_accel.errors import UsageError, nearest

TRACKERS = ("wandb", "tensorboard")
_STRATEGIES = ("no", "steps", "epoch")


@dataclass(kw_only=True)
class Model:
    """Model and recipe."""

    model_name_or_path: str | None = flag(
        None,
        "model to start from: a folder, a Hub id, or a zoo: stub",
        default_text="output_dir, when nothing is trained",
        path=True,
    )
    recipe: str | None = flag(
        None, "what happens to the model in training: a .yaml or .md file, or a zoo: stub", path=True
    )
    recipe_args: str | None = flag(None, "new values of recipe variables: '{\"num_epochs\": 12}' or num_epochs=12,a:b")
    distill_teacher: str | None = flag(
        None,
        "model that a recipe's DistillationModifier follows: a folder, a Hub id, a zoo: stub, `self` (the model as it "
        "starts), or `disable` (the recipe's distillation is left out)",
        path=True,
    )
    one_shot: bool = flag(False, "apply the recipe to the model and save it, without training")
    new_head: bool = flag(False, "start from a newly initialized head, although the model has a fine-tuned one")
    config_name: str | None = flag(
        None, "folder or Hub id of the model's config", default_text="model_name_or_path", path=True
    )
    tokenizer_name: str | None = flag(
        None, "folder or Hub id of the tokenizer", default_text="model_name_or_path", path=True
    )
    use_teacher_tokenizer: bool = flag(False, "tokenize with the teacher's tokenizer instead of the model's")
    model_revision: str = flag("main", "branch, tag or commit of a Hub model")


@dataclass(kw_only=True)
class Training:
    """Training."""

    output_dir: str | None = flag(None, "folder for the model, its checkpoints and results; always needed", path=True)
    overwrite_output_dir: bool = flag(False, "start anew although output_dir holds a run")
    resume_from_checkpoint: bool | str | None = flag(
        None,
        "checkpoint folder to go on from; true: the newest in output_dir",
        default_text="go on if output_dir holds an unfinished run of the same settings",
        path=True,
    )
    do_train: bool = flag(False, "train")
    num_train_epochs: float = flag(3.0, "passes over the training rows; a recipe's own epochs win", above=0)
    max_steps: int = flag(-1, "optimizer steps, instead of num_train_epochs; a recipe's own epochs win", at_least=-1)
    per_device_train_batch_size: int = flag(8, "rows of a micro-batch on each process", at_least=1)
    gradient_accumulation_steps: int = flag(1, "micro-batches of each process in one optimizer step", at_least=1)
    learning_rate: float = flag(5e-5, "AdamW's peak learning rate; a recipe's learning rate wins", at_least=0)
    lr_scheduler_type: str = flag(
        "linear",
        "course of the learning rate after warmup; a recipe's learning rate wins",
        choices=("linear", "cosine", "constant", "constant_with_warmup"),
    )
    warmup_ratio: float = flag(0.0, "share of all optimizer steps in which the rate rises from 0", at_least=0, below=1)
    warmup_steps: int = flag(0, "optimizer steps in which the rate rises from 0, instead of a ratio", at_least=0)
    weight_decay: float = flag(
        0.0, "AdamW's weight decay, on all but biases and LayerNorm; a recipe's weight decay wins", at_least=0
    )
    adam_beta1: float = flag(0.9, "AdamW's decay of the mean of gradients", at_least=0, below=1)
    adam_beta2: float = flag(0.999, "AdamW's decay of the mean of squared gradients", at_least=0, below=1)
    adam_epsilon: float = flag(1e-8, "AdamW's term against division by zero", above=0)
    max_grad_norm: float = flag(1.0, "gradients longer than this are shortened to it; 0: never", at_least=0)
    nan_loss: str = flag(
        "stop",
        "what a loss that is not a number does: stop keeps the last checkpoint; skip leaves that step out",
        choices=("stop", "skip"),
    )
    label_smoothing_factor: float = flag(
        0.0, "share of each label's weight spread evenly over all labels", at_least=0, below=1
    )
    seed: int = flag(42, "of the fresh head, dropout, order of rows, and every draw of rows", at_least=0, below=2**32)


@dataclass(kw_only=True)
class Evaluation:
    """Evaluation and prediction."""

    do_eval: bool = flag(False, "evaluate the model, at the end and as eval_strategy says")
    do_predict: bool = flag(False, "label the test rows")
    per_device_eval_batch_size: int = flag(8, "rows of an evaluation batch on each process", at_least=1)
    eval_strategy: str = flag(
        "no",
        "when to evaluate during training; other than `no` implies --do_eval",
        choices=_STRATEGIES,
        old_name="evaluation_strategy",
    )
    eval_steps: int | None = flag(
        None, "optimizer steps from one evaluation to the next", at_least=1, default_text="logging_steps"
    )
    load_best_model_at_end: bool = flag(False, "end with the best checkpoint's model instead of the last step's")
    metric_for_best_model: str = flag("loss", "which evaluation figure is best judged by: loss, accuracy, ...")
    greater_is_better: bool | None = flag(
        None, "whether a higher figure is better", default_text="false for loss, mse and mae, else true"
    )
    best_model_after_epoch: float | None = flag(
        None,
        "only evaluations at or after this epoch can be best; never those before the recipe's last change of structure "
        "(final sparsity reached, observers frozen)",
        at_least=0,
        default_text="that last change",
    )


@dataclass(kw_only=True)
class Saving:
    """Saving and tracking."""

    save_strategy: str = flag("steps", "when to write a checkpoint", choices=_STRATEGIES)
    save_steps: int = flag(500, "optimizer steps from one checkpoint to the next", at_least=1)
    save_total_limit: int | None = flag(
        None, "checkpoints kept: the newest, and always the best", at_least=1, default_text="all"
    )
    logging_steps: int = flag(500, "optimizer steps from one logged training figure to the next", at_least=1)
    report_to: tuple[str, ...] = flag((), "trackers: wandb, tensorboard, all or none", default_text="none")
    run_name: str | None = flag(None, "name of the run in W&B", default_text="WANDB_NAME, else name of output_dir")
    debug: bool = flag(False, "show the traceback of a usage error")


@dataclass(kw_only=True)
class Machine:
    """Precision and speed."""

    fp16: bool = flag(False, "half precision with loss scaling, on a GPU; without one, float32")
    bf16: bool = flag(False, "bfloat16 precision")
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, slower")
    torch_compile: bool = flag(False, "compile the model with torch.compile")
    ddp_find_unused_parameters: bool = flag(
        False, "DDP: look in every step for weights without a gradient, for models that do not use all of theirs"
    )
    dataloader_num_workers: int = flag(0, "processes that make batches, beside each training process", at_least=0)


@dataclass(kw_only=True)
class TrainingArguments(Model, Data, Training, Evaluation, Saving, Machine):
    """Arguments of a training program, checked; each task adds its own (see `text_classification`).

    After construction `eval_steps` and `model_name_or_path` are set, `metric_for_best_model` has no `eval_` in front,
    `greater_is_better` is a bool, `report_to` lists trackers (none: empty), `resume_from_checkpoint` is a path, True
    or None, and `do_eval` is true where `eval_strategy` asks for evaluations.

    Raises:
        UsageError: a value out of bounds, or flags that contradict or miss each other.
    """

    refused: ClassVar[Mapping[str, str]] = REFUSED

    def __post_init__(self) -> None:
        """Fills in what follows from other flags, then checks."""
        expand_paths(self)
        check_bounds(self)
        self._fill_in()
        self._check_what_is_asked()
        self.check_data(train=self.do_train, evaluate=self.do_eval, predict=self.do_predict)
        self._check_model()
        self._check_training()

    def to_dict(self) -> dict[str, Any]:
        """All flags and their values, for trackers and all_results.json."""
        return dataclasses.asdict(self)

    def warnings(self) -> list[str]:
        """Lines about flags that are given and have nothing to act on."""
        idle = [
            ("eval_steps", self.eval_steps != self.logging_steps and self.eval_strategy != "steps", "--eval_strategy"),
            ("save_steps", self.save_steps != 500 and self.save_strategy != "steps", "--save_strategy"),
        ]
        lines = [f"--{name} does nothing without {strategy} steps." for name, holds, strategy in idle if holds]
        if self.run_name and not self.report_to:
            lines.append("--run_name does nothing without --report_to.")
        if self.eval_strategy != "no" and not self.do_train:
            lines.append("--eval_strategy does nothing without --do_train.")
        if self.test_file and not (self.do_predict or self.eval_on_test):
            lines.append("--test_file is not read without --do_predict or --eval_on_test.")
        if self.train_file and not (self.do_train or self.one_shot or self.validation_ratio):
            lines.append("--train_file is read for its label names only: --do_train is not given.")
        if (self.fp16 or self.bf16) and not (self.do_train or self.one_shot):
            lines.append("--fp16 and --bf16 are for training: a model is measured in float32, as its files hold it.")
        if self.eval_on_test and self.load_best_model_at_end:
            lines.append("--eval_on_test chooses the best model on the test rows: its score there is flattered.")
        return lines

    # --- what follows from other flags --------------------------------------------------------------------------------

    def _fill_in(self) -> None:
        if self.model_name_or_path is None and not (self.do_train or self.one_shot):
            self.model_name_or_path = self.output_dir
        self.do_eval = self.do_eval or (self.do_train and self.eval_strategy != "no")
        self.eval_steps = self.eval_steps or self.logging_steps
        self.resume_from_checkpoint = self.resume_from_checkpoint or None
        self.metric_for_best_model = self.metric_for_best_model.removeprefix("eval_")
        if self.greater_is_better is None:
            self.greater_is_better = not self.metric_for_best_model.endswith(("loss", "mse", "mae"))
        words = [word for text in self.report_to for word in text.replace(",", " ").split()]
        for word in words:
            if word not in (*TRACKERS, "all", "none"):
                raise UsageError(
                    f"--report_to does not know '{word}'.{nearest(word, TRACKERS)} "
                    "It takes: wandb, tensorboard, all, none."
                )
        if "none" in words and len(set(words)) > 1:
            raise UsageError(f"--report_to none contradicts {' '.join(word for word in words if word != 'none')}.")
        self.report_to = tuple(tracker for tracker in TRACKERS if tracker in words or "all" in words)

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_what_is_asked(self) -> None:
        if self.output_dir is None:
            raise UsageError("--output_dir is missing: the folder for the model, its checkpoints and results.")
        if self.model_name_or_path is None:
            raise UsageError("--model_name_or_path is missing: a folder, a Hub id, or a zoo: stub to start from.")
        if not (self.do_train or self.do_eval or self.do_predict or self.one_shot):
            raise UsageError("nothing to do: add --do_train, --do_eval, --do_predict or --one_shot.")
        if self.one_shot and self.do_train:
            raise UsageError("--one_shot applies the recipe without training: leave out --do_train.")
        if self.eval_on_test and not self.do_eval:
            raise UsageError("--eval_on_test says what --do_eval measures on: add --do_eval.")

    def _check_model(self) -> None:
        if self.recipe is None:
            for name in ("recipe_args", "one_shot"):
                if getattr(self, name):
                    raise UsageError(f"--{name} acts on a recipe: add --recipe.")
            if self.distill_teacher not in (None, "disable"):
                raise UsageError("--distill_teacher acts through a recipe's DistillationModifier: add --recipe.")
        if self.new_head and not self.do_train:
            raise UsageError("--new_head is for training: only there does a new head learn anything.")
        if self.use_teacher_tokenizer and self.distill_teacher in (None, "disable", "self"):
            raise UsageError("--use_teacher_tokenizer needs --distill_teacher with a model of its own.")

    def _check_training(self) -> None:
        if self.max_steps == 0:
            raise UsageError("--max_steps must be at least 1, or -1 for none.")
        if self.fp16 and self.bf16:
            raise UsageError("--fp16 and --bf16 are two precisions: give one.")
        if self.warmup_ratio and self.warmup_steps:
            raise UsageError("--warmup_ratio and --warmup_steps both say how long warmup lasts: give one.")
        if self.lr_scheduler_type == "constant" and (self.warmup_ratio or self.warmup_steps):
            raise UsageError("--lr_scheduler_type constant has no warmup: use constant_with_warmup.")
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise UsageError("--overwrite_output_dir starts anew and --resume_from_checkpoint goes on: give one.")
        if self.load_best_model_at_end:
            self._check_best_model()

    def _check_best_model(self) -> None:
        asked = "--load_best_model_at_end compares the checkpoints of a training run: "
        if not self.do_train:
            raise UsageError(asked + "add --do_train.")
        if self.eval_strategy == "no":
            raise UsageError(asked + "add --eval_strategy epoch and --save_strategy epoch.")
        if self.save_strategy != self.eval_strategy:
            raise UsageError(
                asked + f"each must be evaluated; --save_strategy is {self.save_strategy} and "
                f"--eval_strategy is {self.eval_strategy}: give both the same."
            )
        if self.eval_strategy == "steps" and self.save_steps % (self.eval_steps or 1):
            raise UsageError(
                asked + f"each must be evaluated; --save_steps {self.save_steps} is no multiple of "
                f"--eval_steps {self.eval_steps}."
            )
