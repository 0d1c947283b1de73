/* roots: where the C library calls main, and the function of a thread.
 *
 * It prints the two return addresses, as bytes from the start of the library: by them the outermost
 * frames of a stack are recognised where the library has no names for its own functions.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static void print(void *address)
{
    Dl_info info;

    if (dladdr(address, &info) == 0)
        info.dli_fbase = NULL;
    printf("%ld\n", (long)((char *)address - (char *)info.dli_fbase));
}

static void *run(void *unused)
{
    (void)unused;
    print(__builtin_return_address(0));
    return NULL;
}

int main(void)
{
    pthread_t thread;

    print(__builtin_return_address(0));
    if (pthread_create(&thread, NULL, run, NULL) != 0)
        return 1;
    pthread_join(thread, NULL);
    return 0;
}
