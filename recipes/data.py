"""Where the data is, and how lines of it are read: what cannot be had or read is one sentence with file and line."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar
from urllib.error import URLError
from urllib.request import urlopen

from recipes.command import Run
from regard.pretrained import Refused
from regard.record.files import write_whole

S = TypeVar("S")
T = TypeVar("T")
SECONDS = 20  # how long a source may take to answer

# name: repository, commit, folder in it, licence
SOURCES = {
    name: tuple(where.split(" ", 3))
    for name, where in {
        "tinyshakespeare": "karpathy/char-rnn 6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e data/tinyshakespeare public domain",
        "clinc150": "clinc/oos-eval 828f8093932c8fe6ca7936c3d2e52903b1c523de data CC BY 3.0",
        "banking77": "PolyAI-LDN/task-specific-datasets 57ec275d8078af65b7731c2a98be812d844a6d6b banking_data CC BY 4.0",
        "multi30k": "multi30k/dataset a3d2e0d26b56f3846f66a952536ffed4e401d05a data/task1/raw non-commercial research alone",
        "ncbi_disease": "spyysalo/ncbi-disease 5a266c6fc76fb2b5184cfa397ff0a5ecdb133aec conll public domain",
        "wnut17": "leondz/emerging_entities_17 e52a2d2a71ac1a051ca2d532eef28653c5c02603 . CC BY 4.0",
        "snips_slots": "MiuLab/SlotGated-SLU 61f0307c729b1fad479ef1de94aa5ac5dee601b0 data/snips utterances CC0",
        "fashion_mnist": "zalandoresearch/fashion-mnist b2617bb6d3ffa2e429640350f613e3291e10b141 data/fashion MIT",
        "fsdd": "Jakobovski/free-spoken-digit-dataset 26eb9aaf76e81b692f806f9140c2d2777410d7a1 recordings CC BY-SA 4.0",
    }.items()
}


@dataclass(frozen=True)
class Set:
    """A set of data: its name, and the folders in which its files may lie, the last one for what is fetched."""

    name: str
    folders: tuple[Path, ...]
    fetch: bool
    skip_malformed: bool

    def file(self, name: str) -> Path:
        """A file of the set; fetched from its public source if it lies nowhere, and there is a network."""
        places = [folder / name for folder in self.folders]
        for place in places:
            if place.is_file():
                return place
        repository, commit, folder, licence = SOURCES[self.name]
        looked = ", ".join(repr(str(place)) for place in places)
        source = f"https://raw.githubusercontent.com/{repository}/{commit}/{folder}/{name}".replace("//", "/").replace(
            ":/", "://"
        )
        to_do = (
            f"Download {source} (and what else the recipe reads of https://github.com/{repository}, licence: {licence}), "
            f"put it into a folder {self.name!r}, and name that folder's parent with --data or REGARD_DATA."
        )
        if not self.fetch:
            raise Refused(f"{self.name}: {name} was looked for at {looked}, and is not there. {to_do}")
        try:
            with urlopen(source, timeout=SECONDS) as answer:
                content = answer.read()
        except (URLError, TimeoutError, ConnectionError) as error:
            why = getattr(error, "reason", error)
            raise Refused(
                f"{self.name}: {name} was looked for at {looked}, and its source cannot be reached ({why}). {to_do}"
            ) from error
        print(f"{self.name}: {name} fetched from {source} (licence: {licence}) to {places[-1]}")
        places[-1].parent.mkdir(parents=True, exist_ok=True)
        write_whole(places[-1], content)
        return places[-1]

    def lines(self, name: str) -> list[str]:
        """The lines of a UTF-8 file, compressed or not; one that is not UTF-8 stops."""
        path = self.file(name)
        try:
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        except (EOFError, gzip.BadGzipFile) as error:
            raise Refused(f"{str(path)!r} is no whole gzip file ({error}): download it again.") from error
        lines = []
        for number, line in enumerate(content.removesuffix(b"\n").split(b"\n"), 1):
            try:
                lines.append(line.decode().removesuffix("\r"))
            except UnicodeDecodeError as error:
                raise Refused(f"{str(path)!r}, line {number}: not UTF-8 (byte {error.start}).") from error
        return lines

    def parsed(
        self, name: str, numbered: Iterable[tuple[int, S]], parse: Callable[[S], T | None], unit: str = "line"
    ) -> Iterator[T]:
        """What `parse` makes of numbered lines; the ones for which it raises ValueError stop, or are counted and left out."""
        wrong: list[str] = []
        for number, line in numbered:
            try:
                made = parse(line)
            except ValueError as error:
                wrong.append(f"{str(self.file(name))!r}, {unit} {number}: {error}")
                continue
            if made is not None:
                yield made
        if wrong and not self.skip_malformed:
            raise Refused(f"{wrong[0]}. {unit.capitalize()}s like this: {len(wrong)}; --skip-malformed leaves them out.")
        if wrong:
            print(f"{wrong[0]}. Left out: {len(wrong)} {unit if len(wrong) == 1 else unit + 's'}.")


def find(run: Run, name: str) -> Set:
    """A set of data: at --data, which is a demand; else at REGARD_DATA, in the cache, or at its public source."""
    if run.data is not None:
        return Set(name, (run.data / name,), fetch=False, skip_malformed=run.skip_malformed)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "regard" / "data" / name
    told = os.environ.get("REGARD_DATA")
    folders = (Path(told) / name, cache) if told else (cache,)
    return Set(name, folders, fetch=True, skip_malformed=run.skip_malformed)
