"""Readable names for C++ and Rust symbols. Never raises: a name that is not mangled stays as it is.

C++ goes to ``__cxa_demangle`` of libstdc++ through cxxfilt, 2 us a name. Rust's older scheme is
valid C++ mangling with a hash at the end and escapes of its own; Rust v0 (``_R``) is left alone.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

# __cxa_demangle copies a substitution's text at each reference to it, so 400 bytes of name can
# ask for more memory than there is. Names that may grow past this many bytes (40 ms) stay mangled:
# 6 of the 122,576 in node, libstdc++ and libLLVM.
_MAX_GROWTH = 4 << 20
_MAX_READABLE = 16 << 10

_REFERENCE = re.compile(rb"[ST][0-9A-Z]*_")
_RUST_LEGACY = re.compile(rb"_ZN.+17h[0-9a-f]{16}E", re.DOTALL)
_RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
_RUST_ESCAPE = re.compile(r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$")
_RUST_ESCAPES = {
    "SP": "@",
    "BP": "*",
    "RF": "&",
    "LT": "<",
    "GT": ">",
    "LP": "(",
    "RP": ")",
    "C": ",",
}


@functools.lru_cache(maxsize=1 << 16)
def demangle(name: str | bytes) -> str:
    r"""The name as its author wrote it.

    Args:
        name: As the symbol table spells it. Give bytes where it may not be UTF-8: lengths in
            mangled names count bytes.

    Returns:
        The demangled name with its suffixes (``@plt``, ``[clone .cold]``), or ``name``. Bytes that
        are not UTF-8 become ``\xNN``, so that the result can be written anywhere.
    """
    raw = name.encode("utf-8", "backslashreplace") if isinstance(name, str) else name
    if raw.startswith(b"___Z"):
        raw = raw[2:]
    if raw.startswith(b"_Z"):
        mangled, at, version = raw.partition(b"@")
        readable = _rust_legacy(mangled) or _cxx(mangled)
        if readable is not None:
            return readable + _text(at + version)
    return name if isinstance(name, str) else _text(name)


def _rust_legacy(mangled: bytes) -> str | None:
    match = _RUST_LEGACY.match(mangled)
    suffix = mangled[match.end() :] if match else b""
    if match is None or (suffix and not suffix.startswith(b".")):
        return None
    readable = _cxa_demangle(match.group())
    if readable is None:
        return None
    path = _RUST_HASH.sub("", readable)
    path = re.sub(r"(^|::)_\$", r"\1$", path).replace("..", "::")
    path = _RUST_ESCAPE.sub(_rust_character, path)
    return path + _text(suffix)


def _rust_character(escape: re.Match[str]) -> str:
    code = escape.group(1)
    if code in _RUST_ESCAPES:
        return _RUST_ESCAPES[code]
    number = int(code[1:], 16)
    # Control characters and surrogates are no part of any Rust name.
    valid = 0x20 <= number < 0xD800 or 0xE000 <= number < 0x110000
    return chr(number) if valid else escape.group()


def _cxx(mangled: bytes) -> str | None:
    readable = _cxa_demangle(mangled)
    if readable is None and b"." in mangled:
        # libstdc++ knows .cold and .part.0 but not every suffix (.lto_priv.0): show it likewise.
        stem, _, suffix = mangled.partition(b".")
        readable = _cxa_demangle(stem)
        if readable is not None:
            readable += f" [clone .{_text(suffix)}]"
    return readable


def _cxa_demangle(mangled: bytes) -> str | None:
    if b"\0" in mangled or _growth(mangled) > _MAX_GROWTH:
        return None
    readable = _demangler()(mangled)
    if readable is None or len(readable) > _MAX_READABLE:
        return None
    return _text(readable)


def _growth(mangled: bytes) -> int:
    """An upper bound for the demangled length, from the references alone; 1.2 us a name.

    What a reference stands for ended before the first reference to it, so it cannot be longer
    than all that the name says up to there.
    """
    size = position = 0
    seen: dict[bytes, int] = {}
    for match in _REFERENCE.finditer(mangled):
        size += match.start() - position
        position = match.end()
        size += seen.setdefault(match.group(), size)
        if size > _MAX_GROWTH:
            break
    return size + len(mangled) - position


@functools.cache
def _demangler() -> Callable[[bytes], bytes | None]:
    # Imported at the first mangled name: cxxfilt searches for libstdc++ as it is imported, which
    # runs ldconfig (8 ms) or, where that fails, gcc.
    try:
        import cxxfilt
    except (ImportError, OSError):
        return lambda mangled: None

    def demangle_bytes(mangled: bytes) -> bytes | None:
        try:
            readable: bytes = cxxfilt.demangleb(mangled)
        except cxxfilt.Error:  # not a mangled name, or no libstdc++ on this machine
            return None
        return readable

    return demangle_bytes


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")
