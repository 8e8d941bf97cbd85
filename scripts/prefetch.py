"""Fetches all that a training command line needs, on a machine with a network, so that it then runs without one.

    python scripts/prefetch.py --task_name sst2 --model_name_or_path MODEL --recipe RECIPE --distill_teacher TEACHER ...

Takes the words that follow scripts/text_classification.py, all of them, and loads recipe, data, model, tokenizer and
teacher as that script would: what would fail there fails here. Nothing is trained, and no output folder is written.
On a cluster: type it on the login node; the compute nodes see the same cache (HF_HOME, SPARSEZOO_MODELS_PATH), and run
with HF_HUB_OFFLINE=1.
"""

from __future__ import annotations

from sparse_accel.addresses import load_recipe
from sparse_accel.arguments import TextClassificationArguments, parse_arguments
from sparse_accel.errors import run_main
from sparse_accel.modifiers.distillation import check_teacher


def main() -> None:
    arguments = parse_arguments(TextClassificationArguments, description=(__doc__ or "").partition("\n")[0])
    recipe = load_recipe(arguments.recipe, arguments.recipe_args) if arguments.recipe else None
    if arguments.do_train:
        check_teacher(recipe, arguments.distill_teacher)

    from huggingface_hub import constants

    from sparse_accel.models import load_classifier, load_teacher, load_tokenizer
    from sparse_accel.tasks import load_text_classification
    from sparse_accel.zoo.mirror import models_path

    data = load_text_classification(arguments)
    model, _ = load_classifier(arguments, data.label_names, data.problem_type)
    load_tokenizer(arguments)
    if arguments.distill_teacher not in (None, "disable", "self"):
        load_teacher(arguments, model)
    rows = ", ".join(f"{len(split)} {name}" for name, split in data.splits.items())
    print(f"All is there: {rows} rows, model and tokenizer{'' if recipe is None else ', recipe'}.")
    print("The same words after scripts/text_classification.py now need no network. Where it runs, set:")
    print(f"  HF_HUB_OFFLINE=1 HF_HOME={constants.HF_HOME} SPARSEZOO_MODELS_PATH={models_path()}")


if __name__ == "__main__":
    run_main(main)
