"""What was read out of a model: in memory, on disk, as a table and as a page."""

from regard.record.files import NotWritten
from regard.record.format import load
from regard.record.header import BadRecord
from regard.record.reading import record
from regard.record.shapes import READOUTS
from regard.record.values import Layer, Record, Text

__all__ = ["READOUTS", "BadRecord", "Layer", "NotWritten", "Record", "Text", "load", "record"]
