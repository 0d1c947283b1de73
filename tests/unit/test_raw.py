from hypothesis import given
from hypothesis import strategies as st

from bpflame.raw import AbsoluteAddress, AddressSpace, FileKey, FileOffset, Mapping


def mapping(start: int, end: int, offset: int, path: str) -> Mapping:
    return Mapping(AbsoluteAddress(start), AbsoluteAddress(end), FileOffset(offset), FileKey(path))


spans = st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(0, 500))


@given(st.lists(spans, max_size=12))
def test_mappings_cover_what_mmap_leaves(made: list[tuple[int, int, int]]) -> None:
    """Checked byte by byte against a model: each mapping replaces what was there."""
    space = AddressSpace(1, 0, [])
    model: dict[int, tuple[str, int]] = {}
    for number, (start, length, offset) in enumerate(made):
        space.add(mapping(start, start + length, offset, f"/{number}"))
        model.update({start + i: (f"/{number}", offset + i) for i in range(length)})
    for address in range(-1, 90):
        found = space.find(AbsoluteAddress(address))
        seen = found and (found.file.path, address - found.start + found.offset)
        assert seen == model.get(address)
    starts = [each.start for each in space.mappings]
    assert starts == sorted(starts)
    assert all(a.end <= b.start for a, b in zip(space.mappings, space.mappings[1:], strict=False))
