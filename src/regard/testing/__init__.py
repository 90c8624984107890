"""The conformance suite, shipped: whoever writes a backend or a readout runs it against the reference. Needs hypothesis."""

from regard.testing.conformance import QUESTIONS, Mismatch, check
from regard.testing.faults import FAULTS
from regard.testing.strategies import Case, cases, drawn_masks, sizes
from regard.testing.watch import Largest

__all__ = ["FAULTS", "QUESTIONS", "Case", "Largest", "Mismatch", "cases", "check", "drawn_masks", "sizes"]
