/* Copies the machine code of one kernel function to user space, for `bpflame doctor`.
 *
 * Compile-time choices: CODE_ADDRESS, CODE_SIZE, OWN_PID.
 */
struct code {
	u8 bytes[CODE_SIZE];
};

BPF_ARRAY(code, struct code, 1);

/* sys_enter: any system call of ours will do. */
int bpflame_code(void *ctx)
{
	u32 zero = 0;
	struct code *copy = code.lookup(&zero);

	if (copy && bpf_get_current_pid_tgid() >> 32 == OWN_PID)
		bpf_probe_read_kernel(copy->bytes, sizeof(copy->bytes), (void *)CODE_ADDRESS);
	return 0;
}
