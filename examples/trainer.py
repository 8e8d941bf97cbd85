"""Trains a text classifier with transformers' Trainer, with a recipe.

The lines that end in `# recipe` apply the recipe: without them, the same program trains a dense model.

    python examples/trainer.py --model MODEL --recipe RECIPE --train_file train.csv --output_dir outputs/trainer

    accelerate launch --config_file accelerate_configs/ddp.yaml examples/trainer.py ...

train.csv has columns `text` and `label`. `sparse_accel.load("outputs/trainer")` loads the model with its quantizers.
"""

from __future__ import annotations

import argparse
from typing import Any

from datasets import load_dataset
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from sparse_accel.integrations import RecipeMixin  # recipe


class TextTrainer(
    RecipeMixin,  # recipe
    Trainer,
):
    """A Trainer like any other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of the model to start from")
    parser.add_argument("--train_file", required=True, help="CSV with columns text and label")
    parser.add_argument("--output_dir", required=True, help="folder for checkpoints and the trained model")
    parser.add_argument("--batch_size", type=int, default=32, help="rows per process and step (default: 32)")
    parser.add_argument("--learning_rate", type=float, default=5e-5, help="highest learning rate (default: 5e-5)")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the rows (default: 3)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in output_dir")
    parser.add_argument("--recipe", required=True, help="recipe file; may set learning rate and epochs")  # recipe
    parser.add_argument("--teacher", default="disable", help="trained classifier (default: no distillation)")  # recipe
    options = parser.parse_args()

    rows: Any = load_dataset("csv", data_files=options.train_file, split="train")
    names = sorted({str(label) for label in rows["label"]})
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model: Any = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}

    def tokenize(columns: dict[str, list[Any]]) -> dict[str, Any]:
        labels = [names.index(str(label)) for label in columns["label"]]
        return {**tokenizer(columns["text"], truncation=True, max_length=128), "labels": labels}

    trainer = TextTrainer(
        model,
        TrainingArguments(
            output_dir=options.output_dir,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            num_train_epochs=options.epochs,
            save_strategy="epoch",
            save_total_limit=2,
            logging_steps=10,
        ),
        train_dataset=rows.map(tokenize, batched=True, remove_columns=rows.column_names),
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        recipe=options.recipe,  # recipe
        teacher=options.teacher,  # recipe
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model()


if __name__ == "__main__":
    main()
