"""Questions about the matrix, one per file; A.read(…) answers several in the same sweeps."""

from regard.readouts.base import (
    Dense,
    Finished,
    FinishedReadout,
    OnlineReadout,
    Place,
    Readout,
    Scored,
    Swept,
    rows_of,
    zeros,
)
from regard.readouts.columns import Columns
from regard.readouts.diagonal import Diagonal
from regard.readouts.distance import Distance
from regard.readouts.entropy import Entropy
from regard.readouts.logsumexp import LogSumExp
from regard.readouts.mass import Mass
from regard.readouts.maximum import Max
from regard.readouts.pool import Pool
from regard.readouts.received import Received
from regard.readouts.rows import Rows
from regard.readouts.topk import Strongest, TopK

__all__ = [
    "Columns",
    "Dense",
    "Diagonal",
    "Distance",
    "Entropy",
    "Finished",
    "FinishedReadout",
    "LogSumExp",
    "Mass",
    "Max",
    "OnlineReadout",
    "Place",
    "Pool",
    "Readout",
    "Received",
    "Rows",
    "Scored",
    "Strongest",
    "Swept",
    "TopK",
    "rows_of",
    "zeros",
]
