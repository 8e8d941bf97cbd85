"""Sparse transfer learning of a text classifier: recipe, teacher, quantization-aware training.

    python scripts/text_classification.py \\
        --model_name_or_path RedHatAI/oBERT-12-upstream-pruned-unstructured-90-v2 \\
        --recipe sparse_accel/zoo/recipes/sst2_pruned90_quant.yaml --distill_teacher disable \\
        --train_file train.csv --validation_file validation.csv --input_column_names text --label_column_name label \\
        --output_dir sparse_quantized_bert --max_seq_length 128 --per_device_train_batch_size 32 \\
        --do_train --do_eval --eval_strategy epoch --save_strategy epoch --save_total_limit 1

    accelerate launch --config_file accelerate_configs/ddp.yaml scripts/text_classification.py ...    # several GPUs

The same command goes on where an interrupted run stopped. A JSON file of flags may stand in for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparse_accel.cli.parser import parse_arguments
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.main import run_main
from sparse_accel.recipe import Recipe, load_recipe
from sparse_accel.training.tracking import require_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator


def main() -> None:
    # Arguments and recipe come first: --help and a typo answer at once, before anything heavy is imported or loaded.
    arguments = parse_arguments(TextClassificationArguments, description=(__doc__ or "").partition("\n")[0])
    recipe = load_recipe(arguments.recipe, arguments.recipe_args) if arguments.recipe else None
    if arguments.do_train and recipe is not None:
        recipe.check_teacher(arguments.distill_teacher)
    require_trackers(arguments.report_to)

    from sparse_accel.console import say
    from sparse_accel.distributed.heartbeat import lost_processes_named
    from sparse_accel.run_folder import ownership, results
    from sparse_accel.training.one_shot import apply_at_once
    from sparse_accel.training.setup import make_accelerator
    from sparse_accel.training.tracking import trackers_ended

    output_dir = Path(str(arguments.output_dir))
    accelerator = make_accelerator(arguments, recipe)
    with trackers_ended(accelerator), ownership.folders_let_go(), lost_processes_named():
        if arguments.do_train or arguments.one_shot:
            fill_folder = apply_at_once if arguments.one_shot else train_model
            if not fill_folder(arguments, recipe, accelerator):
                say(accelerator, f"{output_dir} holds this very run, finished: nothing is trained again")
            arguments.model_name_or_path = str(output_dir)  # what is measured below is what the files hold
        if arguments.do_eval or arguments.do_predict:
            evaluate_and_predict(arguments, recipe, accelerator)
        if arguments.do_train or arguments.one_shot:
            results.mark_finished(accelerator, output_dir)
    results.show(accelerator, output_dir)


def train_model(arguments: TextClassificationArguments, recipe: Recipe | None, accelerator: Accelerator) -> bool:
    """Trains and fills the output folder. Returns False where the folder holds this very run's finished results."""
    from accelerate.utils import set_seed

    from sparse_accel.console import say
    from sparse_accel.distributed.launch import before_prepare
    from sparse_accel.distributed.weights import plain_model
    from sparse_accel.models.loading import fine_tuned_head, load_classifier, load_tokenizer, sequence_limit
    from sparse_accel.models.sparsity import sparsity_report
    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.run_folder import ownership, results, resume
    from sparse_accel.run_folder.checkpoints import load_checkpoint, save_checkpoint
    from sparse_accel.run_folder.trainer_state import History
    from sparse_accel.tasks import load_text_classification
    from sparse_accel.training.distillation import check_teacher_inputs, fill_teacher_table, make_teacher
    from sparse_accel.training.evaluation import evaluate_splits
    from sparse_accel.training.identity import identity_of, settings_of
    from sparse_accel.training.loaders import make_collator, tokenize_rows, training_loader
    from sparse_accel.training.loop import train
    from sparse_accel.training.optimizer import make_optimizer
    from sparse_accel.training.schedule import base_rate, steps_of_run
    from sparse_accel.training.setup import check_flags_of_task
    from sparse_accel.training.start_table import describe_run, start_table
    from sparse_accel.training.tracking import sparsity_figures, start_trackers, tracker_names

    # --- data, model, recipe ----------------------------------------------------------------------------------------

    with accelerator.main_process_first():
        data = load_text_classification(arguments, fine_tuned_head(arguments))
    check_flags_of_task(arguments, data)
    set_seed(arguments.seed)  # of a new head
    model, fresh = load_classifier(arguments, data)
    tokenizer = load_tokenizer(arguments)
    teacher, teacher_tokenizer = make_teacher(arguments, recipe, accelerator, model)
    run = RecipeRun(recipe, teacher=teacher)
    run.attach(model)  # masks and quantizers are in place, off

    # --- batches, output folder -------------------------------------------------------------------------------------

    limit = min(arguments.max_seq_length, sequence_limit(tokenizer, model))
    rows = tokenize_rows(arguments, accelerator, data, tokenizer, limit, model)
    check_teacher_inputs(arguments, run, rows["train"], (tokenizer, teacher_tokenizer))
    collator = make_collator(arguments, accelerator, tokenizer, limit)
    loader, sampler = training_loader(arguments, accelerator, rows["train"], collator)
    schedule, overruled = steps_of_run(arguments, recipe, sampler.steps)
    run.base_rate = base_rate(arguments, recipe, schedule.total_steps)
    run.notices += overruled
    identity = identity_of(arguments, run, model, rows["train"], sampler, schedule)
    output_dir = Path(str(arguments.output_dir))
    settings = settings_of(arguments, accelerator, run, model, rows, schedule)
    if ownership.claim(accelerator, arguments, run, identity, settings) == "show":
        return False
    results.record_arguments(accelerator, output_dir, arguments)
    start_trackers(accelerator, arguments, recipe)

    # --- prepare, resume, start-up table ----------------------------------------------------------------------------

    if arguments.gradient_checkpointing:
        # The newer name first; the older one warns.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    optimizer = make_optimizer(model, arguments)
    before_prepare(accelerator, model, arguments.per_device_train_batch_size, arguments.max_grad_norm)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run.bind(accelerator, model, optimizer, steps_per_epoch=sampler.steps)
    history = History(f"eval_{arguments.metric_for_best_model}", bool(arguments.greater_is_better))
    checkpoint = resume.checkpoint_to_resume(arguments, accelerator, output_dir)
    if checkpoint is not None:
        load_checkpoint(checkpoint, accelerator, run, history)
    about = describe_run(arguments, run, data, fresh, limit, sampler, schedule)
    if run.teacher is not None:
        tokenizers = (tokenizer, teacher_tokenizer)
        words = fill_teacher_table(arguments, accelerator, run.teacher, data, rows["train"], tokenizers)
        about += [("teacher", f"{arguments.distill_teacher}: {words}")]
    say(accelerator, start_table(accelerator, run, [*about, ("output", str(output_dir))]))

    # --- train ------------------------------------------------------------------------------------------------------

    def log(figures: dict[str, float]) -> None:
        figures = {**figures, **run.metrics()}
        history.add(figures, run.progress)
        accelerator.log(tracker_names(figures), step=run.progress.step)

    def sparsity() -> dict[str, float]:
        return sparsity_figures(sparsity_report(plain_model(accelerator, model)))

    def evaluate() -> None:
        figures = evaluate_splits(arguments, accelerator, model, data, rows, collator)
        log({**figures, **sparsity()})
        late_enough = run.settled() and run.progress.epoch >= (arguments.best_model_after_epoch or 0)
        if arguments.load_best_model_at_end and late_enough and schedule.due(schedule.save_every, run.progress.step):
            history.consider(figures, run.progress.step)
        results.print_line(accelerator, run, figures)

    def save() -> None:
        keep = arguments.save_total_limit
        save_checkpoint(output_dir, accelerator, model, tokenizer, run, history, keep)

    with results.timed() as seconds:
        train(
            accelerator,
            model,
            optimizer,
            loader,
            sampler,
            run,
            schedule,
            seed=arguments.seed,
            label_smoothing=arguments.label_smoothing_factor,
            max_grad_norm=arguments.max_grad_norm,
            give_up_steps=arguments.nan_loss == "skip",
            log=log,
            evaluate=evaluate,
            save=save,
        )
    if arguments.eval_strategy == "no":
        log(sparsity())
    results.write_final(output_dir, accelerator, model, tokenizer, run, history, seconds())
    return True


def evaluate_and_predict(
    arguments: TextClassificationArguments, recipe: Recipe | None, accelerator: Accelerator
) -> None:
    """Measures a trained model as its files hold it, quantizers on, and writes what it predicts.

    What the folder of a finished run already holds for the same rows, labels and weights is not measured again.
    """
    from sparse_accel.console import say
    from sparse_accel.models.files import fingerprint_of_model
    from sparse_accel.models.loading import head_of, load_tokenizer, load_trained, sequence_limit
    from sparse_accel.run_folder import results
    from sparse_accel.tasks import load_text_classification
    from sparse_accel.training.evaluation import evaluate_splits, measured_on, prediction_files, write_predictions
    from sparse_accel.training.loaders import make_collator, tokenize_rows
    from sparse_accel.training.start_table import describe_columns
    from sparse_accel.training.tracking import start_trackers, tracker_names

    model, folder = load_trained(arguments), Path(str(arguments.output_dir))
    tokenizer, weights = load_tokenizer(arguments), fingerprint_of_model(model)
    with accelerator.main_process_first():
        data = load_text_classification(arguments, head_of(model))
    of_a_run = arguments.do_train or arguments.one_shot
    if not of_a_run:
        say(accelerator, f"columns: {describe_columns(data)}")
    limit = min(arguments.max_seq_length, sequence_limit(tokenizer, model))
    rows = tokenize_rows(arguments, accelerator, data, tokenizer, limit, model)
    collator = make_collator(arguments, accelerator, tokenizer, limit)
    model = model.to(accelerator.device)  # not prepared: measured in float32, as its files hold it
    if arguments.do_eval:
        question = measured_on(weights, data, "validation", rows)
        if not results.is_measured(accelerator, folder, [results.EVAL_RESULTS], question) or not of_a_run:
            say(accelerator, f"evaluation: {data.sources['validation']}, {len(rows['validation'])} rows")
            figures = evaluate_splits(arguments, accelerator, model, data, rows, collator)
            results.write_evaluation(accelerator, folder, str(arguments.model_name_or_path), figures, question)
            start_trackers(accelerator, arguments, recipe)
            accelerator.log(tracker_names(figures, "final"))
    if arguments.do_predict:
        question, files = measured_on(weights, data, "test", rows), prediction_files(rows)
        if not results.is_measured(accelerator, folder, files, question) or not of_a_run:
            write_predictions(arguments, accelerator, model, data, rows, collator)
            results.remember(accelerator, folder, files[0], question)
        else:
            say(accelerator, f"{folder / files[0]} has these predictions already")


if __name__ == "__main__":
    run_main(main)
