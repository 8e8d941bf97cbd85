"""Token classification: one tag per word of a sentence (named entities, chunks, parts of speech)."""
