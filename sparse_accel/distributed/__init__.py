"""The only code that knows of more than one process: what they tell each other, and where weights lie."""
