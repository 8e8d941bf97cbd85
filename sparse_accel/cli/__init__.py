"""Words typed on the command line -> checked flags. Imports nothing heavy."""
