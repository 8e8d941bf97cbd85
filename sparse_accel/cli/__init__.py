"""Turns command line words into checked arguments. Imports nothing heavy."""
