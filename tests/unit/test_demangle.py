from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpflame.symbolize.demangle import demangle

HASH = "17h0123456789abcdefE"


@pytest.mark.parametrize(
    ("mangled", "readable"),
    [
        ("main", "main"),
        ("", ""),
        ("_Z", "_Z"),
        ("_Zebra", "_Zebra"),
        ("_ZN3foo3barEv", "foo::bar()"),
        ("___ZN3foo3barEv", "foo::bar()"),
        ("_ZN3foo3barEv@plt", "foo::bar()@plt"),
        ("_ZNSt9exceptionD2Ev@@GLIBCXX_3.4", "std::exception::~exception()@@GLIBCXX_3.4"),
        ("_ZN3foo3barEv.cold", "foo::bar() [clone .cold]"),
        ("_ZN3foo3barEv.part.0", "foo::bar() [clone .part.0]"),
        ("_ZN3foo3barEv.isra.0.cold", "foo::bar() [clone .isra.0] [clone .cold]"),
        ("_ZN3foo3barEv.llvm.123", "foo::bar() [clone .llvm.123]"),
        ("_ZN3fooE.lto_priv.0", "foo [clone .lto_priv.0]"),
        ("_ZN3foo3barEv.cold@plt", "foo::bar() [clone .cold]@plt"),
        ("memcpy@GLIBC_2.2.5", "memcpy@GLIBC_2.2.5"),
        (f"_ZN4core3fmt5write{HASH}", "core::fmt::write"),
        (f"_ZN4core3fmt5write{HASH}.llvm.99", "core::fmt::write.llvm.99"),
        (f"_ZN4core3fmt5write{HASH}@plt", "core::fmt::write@plt"),
        (
            f"_ZN50_$LT$alloc..vec..Vec$LT$T$GT$$u20$as$u20$Clone$GT$5clone{HASH}",
            "<alloc::vec::Vec<T> as Clone>::clone",
        ),
        (f"_ZN4main28_$u7b$$u7b$closure$u7d$$u7d${HASH}", "main::{{closure}}"),
        (f"_ZN4main7f$ud8$x{HASH}", "main::fØx"),
        (f"_ZN4main9f$ud800$x{HASH}", "main::f$ud800$x"),
        (f"_ZN4main6f$ua$x{HASH}", "main::f$ua$x"),
        ("_RNvC6_123foo3bar", "_RNvC6_123foo3bar"),
        ("_ZN3fooE\0x", "_ZN3fooE\0x"),
    ],
)
def test_readable_name(mangled: str, readable: str) -> None:
    assert demangle(mangled) == readable
    assert demangle(mangled.encode()) == readable


def test_bytes_that_are_not_utf8_are_shown() -> None:
    assert demangle(b"_Z4caf\xe9v") == "caf\\xe9()"
    assert demangle(b"caf\xc3\xa9\xff") == "café\\xff"


@given(
    st.one_of(st.text(), st.text().map("_Z".__add__), st.binary(), st.binary().map(b"_ZN".__add__))
)
def test_any_name_gives_text_that_can_be_written(name: str | bytes) -> None:
    readable = demangle(name)
    if isinstance(name, bytes) or name.isprintable():
        readable.encode()
    assert bool(readable) == bool(name)


def reference(number: int) -> str:
    digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
    return "S_" if number == 0 else f"S{digits[number - 1]}_"


def bomb(levels: int) -> str:
    """A<A<..., ...>, A<..., ...>>: each level doubles the one before."""
    doubled = (f"S_I{reference(i + 1)}{reference(i + 1)}E" for i in range(levels))
    return "_Z1f1AIiiE" + "".join(doubled)


def test_name_that_would_fill_the_memory_stays_mangled() -> None:
    assert demangle(bomb(3)).startswith("f(A<int, int>, A<A<int, int>, A<int, int> >")
    began = time.process_time()
    for levels in range(12, 36):
        assert demangle(bomb(levels)) == bomb(levels)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "name", ["_Z1f" + "P" * 10**6 + "i", "_Z" + "N" * 10**6, "_ZN" + "1a" * 10**6]
)
def test_endless_nesting_neither_crashes_nor_hangs(name: str) -> None:
    assert demangle(name) == name


def test_without_cxxfilt_names_stay_mangled(tmp_path: Path) -> None:
    (tmp_path / "cxxfilt.py").write_text("raise OSError('no libstdc++')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from bpflame.symbolize.demangle import demangle\n"
        "assert 'cxxfilt' not in sys.modules\n"
        "print(demangle('main'), demangle('_Z1fv'))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert out.stdout == "main _Z1fv\n"


def test_names_of_libstdcxx_agree_with_cxxfilt() -> None:
    library = f"/usr/lib/{os.uname().machine}-linux-gnu/libstdc++.so.6"
    out = subprocess.run(["nm", "-D", library], check=True, capture_output=True, text=True)
    names = sorted({line.split()[-1].partition("@")[0] for line in out.stdout.splitlines()})
    assert len(names) > 5000
    # Without -i, c++filt spells std::istream out as a basic_istream of its defaults.
    filtered = subprocess.run(
        ["c++filt", "-i"], input="\n".join(names), check=True, capture_output=True, text=True
    )
    pairs = zip(names, filtered.stdout.split("\n"), strict=True)
    different = [(name, demangle(name), want) for name, want in pairs if demangle(name) != want]
    assert different == []
