"""From addresses to names: ELF files, the kernel, and C++ and Rust demangling."""
