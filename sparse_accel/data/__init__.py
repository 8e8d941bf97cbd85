"""From data files and datasets to batches, for any task: tables, columns, tokenizing, batches."""
