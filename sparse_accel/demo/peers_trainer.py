"""Fine-tunes a text classifier with transformers.Trainer, with the settings of run_glue.py: the peer of a benchmark.

Rows are padded to the longest length, as run_glue.py does by default. Nothing is evaluated or saved.
"""

from __future__ import annotations

import argparse


def main() -> None:
    """Reads the flags and trains."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model_name_or_path", required=True, help="folder of a classifier with its tokenizer")
    parser.add_argument("--train_file", required=True, help="CSV file with columns `text` and `label`")
    parser.add_argument("--output_dir", required=True, help="nothing is written there")
    parser.add_argument("--max_seq_length", type=int, required=True, help="tokens of a row")
    parser.add_argument("--num_train_epochs", type=float, required=True)
    parser.add_argument("--per_device_train_batch_size", type=int, required=True)
    parser.add_argument("--bf16", action="store_true", help="autocast to bfloat16")
    asked = parser.parse_args()

    from datasets import load_dataset
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        Trainer,
        TrainingArguments,
        default_data_collator,
    )

    tokenizer = AutoTokenizer.from_pretrained(asked.model_name_or_path)
    rows = load_dataset("csv", data_files=asked.train_file, split="train").map(
        lambda columns: tokenizer(
            columns["text"], padding="max_length", truncation=True, max_length=asked.max_seq_length
        ),
        batched=True,
    )
    arguments = TrainingArguments(
        asked.output_dir,
        num_train_epochs=asked.num_train_epochs,
        per_device_train_batch_size=asked.per_device_train_batch_size,
        bf16=asked.bf16,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
    )
    model = AutoModelForSequenceClassification.from_pretrained(asked.model_name_or_path)
    Trainer(model, arguments, default_data_collator, rows).train()


if __name__ == "__main__":
    main()
