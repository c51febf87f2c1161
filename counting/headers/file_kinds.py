"""Tell what a file that is not safetensors really is, from its first bytes, for the error to say."""

from __future__ import annotations

# (first bytes, what it is, the next step)
SIGNATURES: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it points to", "Run: git lfs pull"),
    (b"version https://hawser", "a Git LFS pointer, not the file it points to", "Run: git lfs pull"),
    (b"GGUF", "a GGUF file", "Give it a name that ends in .gguf."),
    (b"PK\x03\x04", "a zip archive (a PyTorch .pt or .bin file?)", "Convert it to safetensors first."),
    (b"\x93NUMPY", "a NumPy .npy file", "Convert it to safetensors first."),
    (b"\x89HDF", "an HDF5 file", "Convert it to safetensors first."),
    (b"\x1f\x8b", "gzip-compressed data", "Decompress it first."),
    (b"\x28\xb5\x2f\xfd", "zstd-compressed data", "Decompress it first."),
)
HTML = "an HTML page (a login or error page saved as the file?)"


def identify(prefix: bytes) -> tuple[str, str] | None:
    """(what it is, the next step) for the first bytes of a file, or None when nothing is recognised."""
    for signature, kind, advice in SIGNATURES:
        if prefix.startswith(signature):
            return kind, advice
    text = prefix.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return HTML, "Download the file again, logged in where the repo asks for it."
    # Pickle protocols 2 to 5 begin with the PROTO opcode; the next opcode of a saved state dict is a frame, an
    # empty dict, a GLOBAL or a LONG1 (the magic number of torch's legacy format).
    if len(prefix) > 2 and prefix[0] == 0x80 and 2 <= prefix[1] <= 5 and prefix[2:3] in b"\x95}c\x8a(]":
        return "a Python pickle (a PyTorch .bin file?)", "Convert it to safetensors; a pickle is never opened here."
    # Eight printable characters would be a length of 2 * 10^18 bytes.
    if len(prefix) >= 8 and all(32 <= byte < 127 or byte in b"\t\r\n" for byte in prefix):
        return "a text file", "Give a .safetensors file, or the folder it lies in."
    return None
