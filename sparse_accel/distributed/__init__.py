"""The only code that knows about several processes: how they communicate, and how weights are distributed."""
