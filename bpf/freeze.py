"""Whether reading user memory in an interrupt can freeze the running kernel.

From Linux 5.19 the hardened usercopy check looks up vmalloc areas (0aef499f3172) under a lock that
the interrupted code may hold. Linux 6.4 mended copy_from_user_nofault() (d319f344561d), which since
then asks nmi_uaccess_okay(); stable kernels have the fix too.
"""

from __future__ import annotations

import functools

from bpflame.bpf.kernel_code import calls

MENDED = "6.4, 6.3.10, 6.1.36"
"""Where it is mended, for the user: first releases of the main line and of stable branches."""

_USERCOPY_CHECKS = ("__check_object_size", "check_heap_object")


@functools.cache
def can_freeze() -> bool | None:
    """Whether bpf_probe_read_user() in an interrupt, maskable or not, can freeze this kernel.

    It takes some 0.3 s.

    Returns:
        None where that cannot be told: another architecture, hidden symbols, no privileges.
    """
    mended = calls("copy_from_user_nofault", "nmi_uaccess_okay")
    if mended is None:
        return None
    return not mended and any(calls(check, "find_vmap_area") for check in _USERCOPY_CHECKS)
