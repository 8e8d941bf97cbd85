"""Trains a text classifier in a plain Accelerate loop, with a recipe.

The lines that end in `# recipe` apply the recipe: without them, the same program trains a dense model.

    python examples/own_loop.py --model MODEL --recipe RECIPE --train_file train.csv --output_dir outputs/own_loop

    accelerate launch --config_file accelerate_configs/ddp.yaml examples/own_loop.py ...    # or fsdp2.yaml

train.csv has columns `text` and `label`. `sparse_accel.load("outputs/own_loop")` loads the model with its quantizers.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from sparse_accel import RecipeRun, Teacher, load_recipe  # recipe
from sparse_accel.distributed.launch import before_prepare, launch_options  # recipe
from sparse_accel.models.files import write_quantizers  # recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of the model to start from")
    parser.add_argument("--train_file", required=True, help="CSV with columns text and label")
    parser.add_argument("--output_dir", required=True, help="folder for the trained model")
    parser.add_argument("--batch_size", type=int, default=32, help="rows per process and step (default: 32)")
    parser.add_argument("--learning_rate", type=float, default=5e-5, help="constant learning rate (default: 5e-5)")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the rows (default: 3)")
    parser.add_argument("--recipe", required=True, help="recipe file; may set learning rate and epochs")  # recipe
    parser.add_argument("--teacher", help="trained classifier for distillation (default: none)")  # recipe
    args = parser.parse_args()

    set_seed(42)
    handlers: list[Any] = []
    handlers += launch_options()  # DDP: broadcast_buffers=False, else rank 0's ranges overwrite the others  # recipe
    accelerator = Accelerator(kwargs_handlers=handlers)

    with open(args.train_file, encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    names = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model: Any = AutoModelForSequenceClassification.from_pretrained(args.model, num_labels=len(names))
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: number for number, name in enumerate(names)}

    def collate(rows: list[dict[str, str]]) -> dict[str, torch.Tensor]:
        texts = [row["text"] for row in rows]
        inputs = tokenizer(texts, truncation=True, max_length=128, padding=True, return_tensors="pt")
        return {**inputs, "labels": torch.tensor([names.index(row["label"]) for row in rows])}

    loader: Any = DataLoader(rows, batch_size=args.batch_size, shuffle=True, collate_fn=collate)  # type: ignore[arg-type]
    optimizer: Any = torch.optim.AdamW(model.parameters(), lr=args.learning_rate)

    teacher: Any = "disable"  # recipe
    if args.teacher:  # recipe
        followed = AutoModelForSequenceClassification.from_pretrained(args.teacher)  # recipe
        teacher = Teacher(followed.to(accelerator.device))  # recipe
    run = RecipeRun(load_recipe(args.recipe), teacher=teacher)  # recipe
    run.attach(model)  # adds masks and quantizers, still off  # recipe
    before_prepare(accelerator, model, args.batch_size, 0.0)  # settings that FSDP2 and DeepSpeed need  # recipe
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run.bind(accelerator, model, optimizer, steps_per_epoch=len(loader))  # recipe

    epochs = args.epochs
    epochs = run.max_epochs or epochs  # recipe
    model.train()
    for epoch in range(epochs):
        total = torch.zeros((), device=accelerator.device)
        for batch in loader:
            run.step_begin()  # learning rate, masks, quantization phase  # recipe
            outputs = model(**batch)
            loss = outputs.loss
            loss = run.loss(loss, batch, outputs)  # distillation  # recipe
            accelerator.backward(loss)
            run.grads_ready()  # recipe
            optimizer.step()
            optimizer.zero_grad()
            run.step_end(skipped=accelerator.optimizer_step_was_skipped)  # clock, ranges  # recipe
            total += loss.detach()
        mean = accelerator.reduce(total / len(loader), "mean")
        accelerator.print(f"epoch {epoch + 1}: loss {float(mean):.4f}")
    run.finish()  # masked weights are exactly 0, ranges are frozen  # recipe

    weights = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        plain = accelerator.unwrap_model(model)
        plain.save_pretrained(args.output_dir, state_dict=weights)
        tokenizer.save_pretrained(args.output_dir)
        write_quantizers(Path(args.output_dir), plain)  # sparse_accel.load reads them with the weights  # recipe
    accelerator.end_training()


if __name__ == "__main__":
    main()
