"""Trains sentence embeddings with SentenceTransformerTrainer, with a recipe.

The lines that end in `# recipe` apply the recipe: without them, the same program trains a dense model.

    pip install 'sparse_accel[sentence-transformers]'
    python examples/sentence_transformers_trainer.py --model MODEL --recipe RECIPE --train_file pairs.csv \
      --output_dir outputs/embeddings

pairs.csv has columns `anchor` and `positive`, two texts that mean the same. Names in the recipe are those of the
transformer: `encoder`, `embeddings`. `sparse_accel.integrations.load_sentence_transformer("outputs/embeddings")` loads
the model with its quantizers.
"""

from __future__ import annotations

import argparse
from typing import Any

from datasets import load_dataset
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

from sparse_accel.integrations import RecipeMixin  # recipe


class EmbeddingTrainer(
    RecipeMixin,  # recipe
    SentenceTransformerTrainer,
):
    """A SentenceTransformerTrainer like any other."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="folder or Hub id of the model to start from")
    parser.add_argument("--train_file", required=True, help="CSV with columns anchor and positive")
    parser.add_argument("--output_dir", required=True, help="folder for checkpoints and the trained model")
    parser.add_argument("--batch_size", type=int, default=32, help="pairs per process and step (default: 32)")
    parser.add_argument("--learning_rate", type=float, default=5e-5, help="highest learning rate (default: 5e-5)")
    parser.add_argument("--epochs", type=float, default=3, help="passes over the pairs (default: 3)")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in output_dir")
    parser.add_argument("--recipe", required=True, help="recipe file; may set learning rate and epochs")  # recipe
    parser.add_argument("--teacher", default="disable", help="embedding model (default: no distillation)")  # recipe
    options = parser.parse_args()

    pairs: Any = load_dataset("csv", data_files=options.train_file, split="train")
    model = SentenceTransformer(options.model)
    trainer = EmbeddingTrainer(
        model=model,
        args=SentenceTransformerTrainingArguments(
            output_dir=options.output_dir,
            per_device_train_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            num_train_epochs=options.epochs,
            save_strategy="epoch",
            save_total_limit=2,
            logging_steps=10,
        ),
        train_dataset=pairs,
        loss=MultipleNegativesRankingLoss(model),
        recipe=options.recipe,  # recipe
        teacher=options.teacher,  # recipe
    )
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model()


if __name__ == "__main__":
    main()
