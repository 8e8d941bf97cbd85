"""Streams of rows from corpora that fit no disk: in an order of its own for any layout, resumable at any step."""
