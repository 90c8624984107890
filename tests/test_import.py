"""What `import regard` brings in, and which names it exports."""

from __future__ import annotations

import json
import subprocess
import sys

import regard

OPTIONAL = [
    "transformers",
    "triton",
    "hypothesis",
    "pytest",
    "beartype",
    "matplotlib",
    "IPython",
    "ipywidgets",
    "anywidget",
    "polars",
    "pandas",
    "safetensors",
    "tokenizers",
    "sentence_transformers",
    "typer",
    "rich",
    "nanobind",
]


def test_nothing_optional_is_imported():
    code = "import json, sys, regard; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    bare = subprocess.run(
        [sys.executable, "-c", code.replace(", regard", ", torch")], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(done.stdout)) - set(json.loads(bare.stdout))
    assert "regard.attention" in loaded
    unwanted = {name for name in loaded if name.split(".")[0] in OPTIONAL}
    assert not unwanted
    mine = {name for name in loaded if name.startswith("regard.")}
    assert not mine & {
        "regard.transformers",
        "regard.cli",
        "regard.testing",
        "regard.backends.reference",
        "regard.pretrained",
    }


def test_optimised_code_does_not_import_the_reference():
    code = "import sys, regard.backends.tiled; sys.exit('regard.backends.reference' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_exports_exist_and_are_documented():
    for module in (regard, regard.masks, regard.readouts):
        names = getattr(module, "__all__", ("full", "causal", "causal_from", "window", "padding", "dense", "where"))
        for name in names:
            value = getattr(module, name)
            assert value.__doc__, f"{module.__name__}.{name} has no docstring"
