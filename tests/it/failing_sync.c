/* Preloaded into the bridge by a test: once the file that FAIL_SYNC_IF_EXISTS names is there, every
 * sync fails as it does on a dying disk. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

static int fails(void) {
    const char *trigger = getenv("FAIL_SYNC_IF_EXISTS");
    return trigger != NULL && access(trigger, F_OK) == 0;
}

static int sync_with(const char *name, int file) {
    if (fails()) {
        errno = EIO;
        return -1;
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(file);
}

int fsync(int file) { return sync_with("fsync", file); }
int fdatasync(int file) { return sync_with("fdatasync", file); }
