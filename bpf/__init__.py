"""BPF programs, and the little of the kernel's interfaces that loading and reading them needs."""
