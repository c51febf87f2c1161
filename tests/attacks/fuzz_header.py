"""Fuzz the header reader with atheris: `make fuzz`, or `python tests/attacks/fuzz_header.py [seconds] [flags]`.

Every input is also given to safetensors. A finding is anything but a HeaderError raised, a header accepted that
safetensors refuses, or a difference between the fast and the strict reader. Seeds are the hostile rows and real files.
"""

from __future__ import annotations

import importlib.util
import struct
import sys
import tempfile
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
# Tokens of a header in libFuzzer's spelling: quotes as \x22.
WORDS = [rf"\x22{name}\x22:" for name in ("dtype", "shape", "data_offsets", "__metadata__", "w")]
WORDS += [rf"\x22{name}\x22" for name in ("F32", "F4", "BF16", "U8")]
WORDS += ["[0,4]", "[0,0]", "[2,2]", "18446744073709551615", "-0", "1e0", r"\x5cud800", "null"]


def load(name: str) -> ModuleType:
    """A test module beside this file."""
    spec = importlib.util.spec_from_file_location(f"moegauge_fuzz_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def main() -> int:
    """Run for the given seconds (60); 0 also where atheris is not installed, with the reason."""
    try:
        import atheris
    except ImportError:
        sys.stdout.write("skipped: atheris is not installed (it has wheels for Linux, Python 3.11 and later)\n")
        return 0
    with atheris.instrument_imports(include=["moegauge.counting"]):
        differential = load("test_differential")
        rows = load("test_hostile_headers").ROWS

    def one_input(data: bytes) -> None:
        differential.check(data)
        # And once with a true length, so that the JSON is reached more often than the length check lets through.
        text, _, rest = data.partition(b"\n")
        differential.check(struct.pack("<Q", len(text)) + text + bytes(min(len(rest), 64)))

    seconds = sys.argv[1] if len(sys.argv) > 1 else "60"
    with tempfile.TemporaryDirectory() as place:
        corpus, words = Path(place, "corpus"), Path(place, "words")
        corpus.mkdir()
        for number, row in enumerate(rows):
            if len(row.raw) < 4096:
                (corpus / str(number)).write_bytes(row.raw)
        words.write_text("".join(f'"{word}"\n' for word in WORDS))
        flags = [f"-dict={words}", f"-max_total_time={seconds}", "-max_len=4096", "-timeout=10", "-rss_limit_mb=2048"]
        atheris.Setup([sys.argv[0], *flags, *sys.argv[2:], str(corpus)], one_input)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
