"""A model as folder or id: loaded, saved, taught, measured."""
