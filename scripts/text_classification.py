"""Sparse transfer learning of a text classifier: recipe, teacher, quantization-aware training.

    python scripts/text_classification.py \\
        --model_name_or_path RedHatAI/oBERT-12-upstream-pruned-unstructured-90-v2 \\
        --recipe sparse_accel/zoo/recipes/sst2_pruned90_quant.yaml --distill_teacher disable \\
        --train_file train.csv --validation_file validation.csv --input_column_names text --label_column_name label \\
        --output_dir sparse_quantized_bert --max_seq_length 128 --per_device_train_batch_size 32 \\
        --do_train --do_eval --eval_strategy epoch --save_strategy epoch --save_total_limit 1

    accelerate launch --config_file accelerate_configs/ddp.yaml scripts/text_classification.py ...    # several GPUs

The same command resumes an interrupted run. A JSON file may contain the flags.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparse_accel.cli.parser import parse_arguments
from sparse_accel.cli.text_classification import TextClassificationArguments
from sparse_accel.console import say
from sparse_accel.main import run_main
from sparse_accel.publish import present_run, publish_run, require_hub
from sparse_accel.recipe import Recipe, load_recipe
from sparse_accel.training.tracking import require_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator


def main() -> None:
    # Arguments and recipe come first: --help and typos get an answer at once, before heavy imports and loading.
    arguments = parse_arguments(TextClassificationArguments, description=(__doc__ or "").partition("\n")[0])
    recipe = load_recipe(arguments.recipe, arguments.recipe_args) if arguments.recipe else None
    if arguments.do_train and recipe is not None:
        recipe.check_teacher(arguments.distill_teacher)
    require_trackers(arguments.report_to)
    require_hub(arguments)

    from sparse_accel.run_folder import results
    from sparse_accel.tasks import TextClassification
    from sparse_accel.training.evaluation import evaluate_and_predict
    from sparse_accel.training.one_shot import apply_at_once
    from sparse_accel.training.setup import ending_run, make_accelerator

    output_dir = Path(str(arguments.output_dir))
    accelerator = make_accelerator(arguments, recipe)
    with ending_run(accelerator):
        if arguments.do_train or arguments.one_shot:
            if arguments.one_shot:
                is_new = apply_at_once(arguments, recipe, accelerator, TextClassification)
            else:
                is_new = train(arguments, recipe, accelerator)
            if not is_new:
                say(accelerator, f"{output_dir} already contains this run, finished: nothing is trained again")
            arguments.model_name_or_path = str(output_dir)  # evaluate what the files contain
        if arguments.do_eval or arguments.do_predict:
            evaluate_and_predict(arguments, recipe, accelerator, TextClassification)
        if arguments.do_train or arguments.one_shot:
            results.mark_finished(accelerator, output_dir)
        present_run(accelerator, arguments, recipe)
    results.print_results(accelerator, output_dir)
    publish_run(accelerator, arguments)


def train(arguments: TextClassificationArguments, recipe: Recipe | None, accelerator: Accelerator) -> bool:
    """Trains and writes the output folder. Returns False if the folder already contains this run, finished."""
    from accelerate.utils import set_seed

    from sparse_accel.distributed.launch import before_prepare
    from sparse_accel.models.loading import fine_tuned_head, load_model, load_tokenizer
    from sparse_accel.recipe_run import RecipeRun
    from sparse_accel.run_folder import results, resume
    from sparse_accel.run_folder.checkpoints import save_checkpoint
    from sparse_accel.tasks import TextClassification
    from sparse_accel.training.distillation import fill_teacher_table, make_teacher, with_teacher_inputs
    from sparse_accel.training.evaluation import evaluate_splits, evaluate_teacher
    from sparse_accel.training.identity import take_folder
    from sparse_accel.training.loaders import gradient_loader, tokenize_rows, training_loader
    from sparse_accel.training.loop import StepOptions, train_step, training_steps
    from sparse_accel.training.optimizer import make_optimizer
    from sparse_accel.training.run_log import RunLog
    from sparse_accel.training.schedule import lr_schedule, steps_of_run
    from sparse_accel.training.setup import configure_blocks
    from sparse_accel.training.start_table import describe_run, start_table

    # --- task, model, recipe ------------------------------------------------------------------------------------------

    with accelerator.main_process_first():
        task = TextClassification.load(arguments, fine_tuned_head(arguments, TextClassification))
    task.check_flags(arguments)
    set_seed(arguments.seed)  # for a new head
    model, fresh = load_model(arguments, task)
    tokenizer = load_tokenizer(arguments, TextClassification)
    teacher, teacher_tokenizer = make_teacher(arguments, recipe, accelerator, model, task)
    run = RecipeRun(recipe, task=task, teacher=teacher)
    run.attach(model)  # moment 1: adds masks and quantizers, still off

    # --- batches, schedule, output folder -----------------------------------------------------------------------------

    rows = tokenize_rows(arguments, accelerator, task, tokenizer, model)
    rows = with_teacher_inputs(arguments, accelerator, run, rows, teacher_tokenizer)
    loader, sampler = training_loader(arguments, accelerator, task, rows)
    schedule, overridden = steps_of_run(arguments, recipe, sampler.steps)
    run.lr_schedule = lr_schedule(arguments, recipe, schedule.total_steps)
    run.notices += overridden
    if not take_folder(arguments, accelerator, run, model, rows, sampler, schedule):
        return False

    # --- optimizer, prepare, resume -----------------------------------------------------------------------------------

    configure_blocks(arguments, model)  # --gradient_checkpointing, --torch_compile
    optimizer = make_optimizer(model, arguments, accelerator)
    before_prepare(accelerator, model, arguments.per_device_train_batch_size, arguments.max_grad_norm)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run.bind(  # moment 2
        accelerator,
        model,
        optimizer,
        steps_per_epoch=sampler.steps,
        gradient_loader=gradient_loader(arguments, rows, sampler),
        rows_per_forward=arguments.per_device_train_batch_size,
    )
    log = RunLog(arguments, accelerator, run, model)
    resume.resume_run(arguments, accelerator, run, log.history, loader)
    about = describe_run(arguments, run, fresh, rows, sampler, schedule)
    if run.teacher is not None:
        words = fill_teacher_table(arguments, accelerator, run, rows, teacher_tokenizer)
        about.append(("teacher", f"{arguments.distill_teacher}: {words}"))
    say(accelerator, start_table(accelerator, run, [*about, ("output", str(arguments.output_dir))]))
    log.begin(evaluate_teacher(arguments, accelerator, run, rows, teacher_tokenizer), rows)

    # --- the loop -----------------------------------------------------------------------------------------------------

    model.train()
    options = StepOptions(arguments.seed, arguments.max_grad_norm, skip_nan_steps=arguments.nan_loss == "skip")
    output_dir = Path(str(arguments.output_dir))
    with results.timed() as seconds, training_steps(accelerator, run, loader, sampler, schedule) as steps:
        for step, batch in steps:
            steps.add(train_step(accelerator, model, optimizer, run, batch, options), batch)  # moments 3 to 6
            if step == schedule.total_steps:
                run.finish()  # moment 7
            if steps.log_due(step):
                log.add(steps.figures())
            log.add_quantizers(step, batch)
            if steps.evaluate_due(step):
                found = evaluate_splits(arguments, accelerator, model, task, rows)
                log.add_evaluation(found, is_saved=schedule.due(schedule.save_every, step))
            if steps.save_due(step):
                keep = arguments.save_total_limit
                save_checkpoint(output_dir, accelerator, model, tokenizer, run, log.history, keep, loader)
    log.end(evaluated=arguments.eval_strategy != "no")
    results.write_final(output_dir, accelerator, model, tokenizer, run, log.history, seconds())
    return True


if __name__ == "__main__":
    run_main(main)
