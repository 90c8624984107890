"""Hugging Face models whose ``outputs.attentions`` are lazy matrices.

Importing this module registers ``attn_implementation="regard"``. With it and ``output_attentions=True`` every element
of ``outputs.attentions`` (and of encoder, decoder and cross attentions, and of ``generate(...).attentions[step]``) is a
`regard.Attention`, and neither the weights nor the mask are ever stored.
"""

from __future__ import annotations

from transformers import AttentionInterface, AttentionMaskInterface

from regard.transformers import decoding, layer, masking, requests
from regard.transformers.decoding import first_key
from regard.transformers.requests import NAME, require

__all__ = ["NAME", "first_key", "require"]

AttentionInterface.register(NAME, layer.attention_forward)
AttentionMaskInterface.register(NAME, masking.mask_forward)
requests.watch()
decoding.watch()
