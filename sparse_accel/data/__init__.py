"""Data files whose rows are more than a text and a label: sentences of words with a tag for each."""
