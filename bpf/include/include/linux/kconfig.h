/* bcc includes this first; its helpers ask for the BPF syscall. */
#define CONFIG_BPF_SYSCALL 1
