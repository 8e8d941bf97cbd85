"""The output folder of a run: which run owns it, what it contains, and what survives a crash."""
