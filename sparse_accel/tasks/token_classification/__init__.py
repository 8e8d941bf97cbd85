"""Token classification: a tag for every word of a sentence (named entities, chunks, parts of speech)."""
