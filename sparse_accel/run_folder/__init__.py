"""The output folder of a run: whose it is, what it holds, and what survives a crash."""
