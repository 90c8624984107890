"""Where tokens stand: values that compose with any layer, `SelfAttention(…, position=rotary())`."""

from regard.nn.positions.absolute import learned, sinusoidal
from regard.nn.positions.added import alibi, relative
from regard.nn.positions.base import Position
from regard.nn.positions.scalings import dynamic, linear, llama3, yarn
from regard.nn.positions.turned import rotary

__all__ = ["Position", "alibi", "dynamic", "learned", "linear", "llama3", "relative", "rotary", "sinusoidal", "yarn"]
