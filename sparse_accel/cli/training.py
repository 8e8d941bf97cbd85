"""Flags that all training scripts share (model, data, training, evaluation, saving, machine), and their checks.

Names and meanings follow SparseML's commands and the Hugging Face Trainer. Imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from sparse_accel.cli.data import Data
from sparse_accel.cli.parser import check_bounds, expand_paths, flag
from sparse_accel.cli.refused import REFUSED
from sparse_accel.cli.trackers import trackers_in
from sparse_accel.errors import UsageError, nearest, shown

ARTIFACTS = ("recipe", "model", "report")
LOG_LEVELS = ("debug", "info", "warning", "error")
_STRATEGIES = ("no", "steps", "epoch")
_LOWER_IS_BETTER = ("loss", "mse", "mae", "perplexity")  # the ends of names of figures
# A name on the Hub: letters, digits, `-`, `_`, `.`; the rules are those of huggingface_hub's validate_repo_id.
_HUB_NAME = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?")


def check_repository(flag: str, name: str) -> None:
    """Checks a repository's name on the Hub, OWNER/NAME or NAME.

    Args:
        flag: where the name is from, for the message.

    Raises:
        UsageError: the Hub does not allow this name.
    """
    parts = name.split("/")
    fine = len(parts) <= 2 and all(_HUB_NAME.fullmatch(part) for part in parts)
    if not fine or any(pair in name for pair in ("--", "..")) or name.endswith(".git"):
        raise UsageError(
            f"{flag} {shown(name)}: not a name of a Hub repository: OWNER/NAME, or NAME. Allowed are letters, digits, "
            "'-', '_' and '.', at most 96 in a row; no '--' or '..', no '-' or '.' at an end, and no '.git'."
        )


def greater_is_better(figure: str) -> bool:
    """Returns whether a higher value of a figure of evaluations is better; of F1 it is, also of a label `loss`."""
    name = figure.removeprefix("eval_").removesuffix("_mm")
    return name.startswith("f1") or not name.endswith(_LOWER_IS_BETTER)


def _words(texts: tuple[str, ...]) -> list[str]:
    return [word for text in texts for word in text.replace(",", " ").split()]


@dataclass(kw_only=True)
class Model:
    """Model and recipe."""

    model_name_or_path: str | None = flag(
        None,
        "model to start from: a folder, a Hub id or a zoo: stub",
        default_text="output_dir, if nothing is trained",
        path=True,
    )
    recipe: str | None = flag(None, "recipe to apply to the model: a .yaml or .md file, or a zoo: stub", path=True)
    recipe_args: str | None = flag(None, "new values for recipe variables: '{\"num_epochs\": 12}' or num_epochs=12,a:b")
    distill_teacher: str | None = flag(
        None,
        "teacher for distillation modifiers: a folder, a Hub id, a zoo: stub, `self` (the model before training) or "
        "`disable` (no distillation)",
        path=True,
    )
    one_shot: bool = flag(False, "apply the recipe and save the model, without training")
    new_head: bool = flag(False, "start with a newly initialized head, even if the model has a fine-tuned one")
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

    output_dir: str | None = flag(None, "output folder for the model, its checkpoints and results; required", path=True)
    overwrite_output_dir: bool = flag(False, "move the content of output_dir to OUTPUT_DIR.1 and start a new run")
    resume_from_checkpoint: bool | str | None = flag(
        None,
        "checkpoint folder to resume from, or `true` for the newest in output_dir",
        default_text="resume if output_dir contains an unfinished run with the same settings",
        path=True,
    )
    do_train: bool = flag(False, "train the model")
    num_train_epochs: float = flag(3.0, "passes over the training rows; overridden by the recipe's epochs", above=0)
    max_steps: int = flag(
        -1,
        "optimizer steps, instead of num_train_epochs; overridden by the recipe's epochs",
        at_least=-1,
        default_text="not set",
    )
    per_device_train_batch_size: int = flag(8, "rows per micro-batch on each process", at_least=1)
    gradient_accumulation_steps: int = flag(1, "micro-batches per optimizer step on each process", at_least=1)
    learning_rate: float = flag(
        5e-5, "AdamW's peak learning rate; overridden by the recipe's learning rate", at_least=0
    )
    lr_scheduler_type: str = flag(
        "linear",
        "learning rate schedule after warmup; overridden by the recipe's learning rate",
        choices=("linear", "cosine", "constant", "constant_with_warmup"),
    )
    warmup_ratio: float = flag(0.0, "fraction of all optimizer steps used for warmup from 0", at_least=0, below=1)
    warmup_steps: int = flag(0, "optimizer steps used for warmup from 0, instead of warmup_ratio", at_least=0)
    weight_decay: float = flag(
        0.0,
        "AdamW's weight decay, except for biases and LayerNorm; overridden by the recipe's weight decay",
        at_least=0,
    )
    adam_beta1: float = flag(0.9, "AdamW's beta1: decay rate of the mean of gradients", at_least=0, below=1)
    adam_beta2: float = flag(0.999, "AdamW's beta2: decay rate of the mean of squared gradients", at_least=0, below=1)
    adam_epsilon: float = flag(1e-8, "AdamW's epsilon, which avoids division by zero", above=0)
    max_grad_norm: float = flag(1.0, "clip gradients to this norm; 0 turns clipping off", at_least=0)
    nan_loss: str = flag(
        "stop",
        "on a NaN or inf loss: `stop` the run (the last checkpoint is kept), or `skip` the step",
        choices=("stop", "skip"),
    )
    label_smoothing_factor: float = flag(
        0.0, "fraction of each label's weight that is spread evenly over all labels", at_least=0, below=1
    )
    seed: int = flag(
        42, "random seed of a new head, dropout, the order of rows and every draw of rows", at_least=0, below=2**32
    )


@dataclass(kw_only=True)
class Evaluation:
    """Evaluation and prediction."""

    do_eval: bool = flag(False, "evaluate the model at the end, and during training at eval_strategy")
    do_predict: bool = flag(False, "predict the labels of the test rows")
    per_device_eval_batch_size: int = flag(8, "rows per evaluation batch on each process", at_least=1)
    eval_strategy: str = flag(
        "no",
        "when to evaluate during training; `steps` and `epoch` imply --do_eval",
        choices=_STRATEGIES,
        old_name="evaluation_strategy",
    )
    eval_steps: int | None = flag(None, "optimizer steps between evaluations", at_least=1, default_text="logging_steps")
    load_best_model_at_end: bool = flag(False, "end with the model of the best checkpoint instead of the last step")
    metric_for_best_model: str = flag("loss", "evaluation metric that selects the best checkpoint: loss, accuracy, ...")
    greater_is_better: bool | None = flag(
        None, "whether a higher metric is better", default_text="false for loss, mse, mae and perplexity, else true"
    )
    best_model_after_epoch: float | None = flag(
        None,
        "earliest epoch of the best checkpoint; never before the recipe's last change (final sparsity reached, "
        "observers frozen)",
        at_least=0,
        default_text="that last change",
    )


@dataclass(kw_only=True)
class Saving:
    """Saving and output."""

    save_strategy: str = flag("steps", "when to write checkpoints", choices=_STRATEGIES)
    save_steps: int = flag(500, "optimizer steps between checkpoints", at_least=1)
    save_total_limit: int | None = flag(
        None, "number of checkpoints to keep: the newest, and always the best", at_least=1, default_text="all"
    )
    logging_steps: int = flag(500, "optimizer steps between logged training metrics", at_least=1)
    log_level: str = flag(
        "info",
        "what is printed: `warning` leaves out tables, evaluations and progress bars, `error` warnings too; `debug` "
        "adds the messages of the libraries underneath",
        choices=LOG_LEVELS,
    )
    debug: bool = flag(False, "show the traceback of a usage error")


@dataclass(kw_only=True)
class Tracking:
    """Experiment tracking."""

    report_to: tuple[str, ...] = flag(
        (),
        "trackers: wandb, tensorboard, trackio, mlflow, another one that Accelerate knows, `all` (those of the first "
        "four that are installed) or `none`",
        default_text="none",
    )
    project: str | None = flag(
        None, "project (in MLflow: experiment) of the run", default_text="the tracker's variable, else sparse_accel"
    )
    run_name: str | None = flag(None, "name of the run", default_text="WANDB_NAME, else the name of output_dir")
    entity: str | None = flag(None, "user or team in W&B", default_text="WANDB_ENTITY, else your own")
    run_group: str | None = flag(None, "group of runs that this one belongs to", default_text="WANDB_RUN_GROUP")
    run_tags: tuple[str, ...] = flag((), "tags of the run, in W&B and MLflow", default_text="WANDB_TAGS")
    run_notes: str | None = flag(None, "a longer description of the run", default_text="WANDB_NOTES")
    log_artifacts: tuple[str, ...] = flag(
        (), "what to send to W&B or MLflow at the end: recipe, model, report", default_text="none"
    )


@dataclass(kw_only=True)
class Publishing:
    """Hugging Face Hub."""

    push_to_hub: bool = flag(
        False, "upload the finished model to the Hub, with its quantizers, recipe and model card, in one commit"
    )
    hub_model_id: str | None = flag(
        None, "repository: OWNER/NAME, or NAME under your user", default_text="the name of output_dir, under your user"
    )
    hub_private_repo: bool | None = flag(
        None, "whether a new repository is private", default_text="the owner's setting, mostly public"
    )
    hub_token: str | None = flag(
        None,
        "token that may write to the repository; other users of the machine can read a command line, so rather set "
        "HF_TOKEN in the environment",
        default_text="HF_TOKEN, else that of `hf auth login`",
        secret=True,
    )


@dataclass(kw_only=True)
class Machine:
    """Precision and speed."""

    fp16: bool = flag(False, "float16 mixed precision with loss scaling; without a GPU, bf16 if the CPU has it")
    bf16: bool = flag(False, "bfloat16 mixed precision")
    gradient_checkpointing: bool = flag(False, "recompute activations in the backward pass: less memory, slower")
    torch_compile: bool = flag(False, "compile the model with torch.compile")
    ddp_find_unused_parameters: bool = flag(
        False, "DDP: search for weights without a gradient in every step, for models that do not use all weights"
    )
    dataloader_num_workers: int = flag(0, "data loader processes per training process", at_least=0)


@dataclass(kw_only=True)
class TrainingArguments(Model, Data, Training, Evaluation, Saving, Tracking, Publishing, Machine):
    """Checked arguments of a training script; each task adds its own (see `text_classification`).

    After construction, `eval_steps` and `model_name_or_path` are set, `metric_for_best_model` has no `eval_` prefix,
    `greater_is_better` is a bool, `report_to` lists trackers (none: empty), `resume_from_checkpoint` is a path, True
    or None, and `do_eval` is true if `eval_strategy` requires evaluations.

    Raises:
        UsageError: a value is out of bounds, or flags contradict each other or lack another flag.
    """

    refused: ClassVar[Mapping[str, str]] = REFUSED

    labels_at_once = False  # no flag: whether --one_shot applies a recipe that needs the labels of training rows

    def __post_init__(self) -> None:
        """Sets values that follow from other flags, then checks all."""
        expand_paths(self)
        check_bounds(self)
        self._fill_in()
        self._check_what_is_asked()
        self.check_data(train=self.do_train, evaluate=self.do_eval, predict=self.do_predict)
        self._check_model()
        self._check_training()

    def to_dict(self) -> dict[str, Any]:
        """Returns all flags and their values, for trackers and arguments.json; without the token."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "hub_token"}

    def warnings(self) -> list[str]:
        """Returns one line per flag that has no effect, or an unexpected one."""
        idle = [
            ("eval_steps", self.eval_steps != self.logging_steps and self.eval_strategy != "steps", "--eval_strategy"),
            ("save_steps", self.save_steps != 500 and self.save_strategy != "steps", "--save_strategy"),
        ]
        lines = [f"--{name} has no effect without {strategy} steps." for name, holds, strategy in idle if holds]
        if not self.report_to:
            named = ("project", "run_name", "entity", "run_group", "run_tags", "run_notes", "log_artifacts")
            lines += [f"--{name} has no effect without --report_to." for name in named if getattr(self, name)]
        elif self.log_artifacts and not {"wandb", "mlflow"} & set(self.report_to):
            lines.append("--log_artifacts has no effect without --report_to wandb or mlflow.")
        if not self.push_to_hub:
            hub = ("hub_model_id", "hub_private_repo", "hub_token")
            lines += [
                f"--{name} has no effect without --push_to_hub." for name in hub if getattr(self, name) is not None
            ]
        if self.eval_strategy != "no" and not self.do_train:
            lines.append("--eval_strategy has no effect without --do_train.")
        if self.test_file and not (self.do_predict or self.eval_on_test):
            lines.append("--test_file is not read without --do_predict or --eval_on_test.")
        if self.train_file and not (self.do_train or self.one_shot or self.validation_ratio):
            lines.append("--train_file is read only for its label names: --do_train is not given.")
        if (self.fp16 or self.bf16) and not (self.do_train or self.one_shot):
            lines.append("--fp16 and --bf16 apply only to training: evaluation uses float32, as in the model's files.")
        if self.eval_on_test and self.load_best_model_at_end:
            lines.append("--eval_on_test selects the best model on the test rows: its score there is too optimistic.")
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
            self.greater_is_better = greater_is_better(self.metric_for_best_model)
        self.report_to = trackers_in(_words(self.report_to))
        self.run_tags = tuple(_words(self.run_tags))
        self.log_artifacts = tuple(_words(self.log_artifacts))
        for word in self.log_artifacts:
            if word not in ARTIFACTS:
                raise UsageError(
                    f"--log_artifacts: unknown value '{word}'.{nearest(word, ARTIFACTS)} "
                    f"Expected one or more of: {', '.join(ARTIFACTS)}."
                )

    # --- checks -------------------------------------------------------------------------------------------------------

    def _check_what_is_asked(self) -> None:
        if self.output_dir is None:
            raise UsageError("--output_dir is missing: the folder for the model, its checkpoints and results.")
        if self.model_name_or_path is None:
            raise UsageError("--model_name_or_path is missing: a folder, a Hub id or a zoo: stub to start from.")
        if not (self.do_train or self.do_eval or self.do_predict or self.one_shot):
            raise UsageError("nothing to do: add --do_train, --do_eval, --do_predict or --one_shot.")
        if self.one_shot and self.do_train:
            raise UsageError("--one_shot applies the recipe without training: remove --do_train.")
        if self.eval_on_test and not self.do_eval:
            raise UsageError("--eval_on_test selects the rows for --do_eval: add --do_eval.")
        if self.push_to_hub and not (self.do_train or self.one_shot):
            raise UsageError(
                "--push_to_hub uploads what this run trains: add --do_train or --one_shot. To upload a folder that is "
                f"already there: python -m sparse_accel.publish {self.output_dir}"
            )
        if self.hub_model_id is not None:
            check_repository("--hub_model_id", self.hub_model_id)

    def _check_model(self) -> None:
        if self.recipe is None:
            for name in ("recipe_args", "one_shot"):
                if getattr(self, name):
                    raise UsageError(f"--{name} needs a recipe: add --recipe.")
            if self.distill_teacher not in (None, "disable"):
                raise UsageError("--distill_teacher needs a recipe with a distillation modifier: add --recipe.")
        if self.new_head and not self.do_train:
            raise UsageError("--new_head needs training: add --do_train.")
        if self.use_teacher_tokenizer and self.distill_teacher in (None, "disable", "self"):
            raise UsageError("--use_teacher_tokenizer needs --distill_teacher with a folder, a Hub id or a zoo: stub.")

    def _check_training(self) -> None:
        if self.max_steps == 0:
            raise UsageError("--max_steps must be at least 1, or -1 for none.")
        if self.fp16 and self.bf16:
            raise UsageError("--fp16 and --bf16 exclude each other: use one.")
        if self.warmup_ratio and self.warmup_steps:
            raise UsageError("--warmup_ratio and --warmup_steps both set the length of warmup: use one.")
        if self.lr_scheduler_type == "constant" and (self.warmup_ratio or self.warmup_steps):
            raise UsageError("--lr_scheduler_type constant has no warmup: use constant_with_warmup.")
        if self.overwrite_output_dir and self.resume_from_checkpoint:
            raise UsageError("--overwrite_output_dir starts a new run, --resume_from_checkpoint resumes one: use one.")
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
                asked + f"each must be evaluated. --save_strategy is {self.save_strategy} and "
                f"--eval_strategy is {self.eval_strategy}: make them equal."
            )
        if self.eval_strategy == "steps" and self.save_steps % (self.eval_steps or 1):
            raise UsageError(
                asked + f"each must be evaluated. --save_steps {self.save_steps} must be a multiple of "
                f"--eval_steps {self.eval_steps}."
            )
