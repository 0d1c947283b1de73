/* libbcc carries the BPF interface that it was built with. */
#include <linux/types.h>
#include <bcc/bpf.h>
