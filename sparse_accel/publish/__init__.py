"""The model card of a run, and the upload of its folder to the Hugging Face Hub. Imports nothing heavy."""

from __future__ import annotations

from sparse_accel.publish.card import card_at_end, write_card
from sparse_accel.publish.presenting import present_run
from sparse_accel.publish.push import publish_run, push, require_hub

__all__ = ["card_at_end", "present_run", "publish_run", "push", "require_hub", "write_card"]
