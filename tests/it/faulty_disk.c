/* Preloaded into the bridge by a test. While the file that a variable names is there, the disk is faulty:
 *
 *   FAIL_SYNC_IF_EXISTS   every sync fails as it does on a dying disk
 *   SLOW_SYNC_IF_EXISTS   every sync takes 2.5 s, which is longer than the platform waits
 *   NO_QUOTA_IF_EXISTS    whatever is written to a file whose path begins with NO_QUOTA_FOR is refused,
 *                         as it is when the user's quota is used up
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int is_on(const char *variable) {
    const char *trigger = getenv(variable);
    return trigger != NULL && access(trigger, F_OK) == 0;
}

static int sync_with(const char *name, int file) {
    if (is_on("FAIL_SYNC_IF_EXISTS")) {
        errno = EIO;
        return -1;
    }
    if (is_on("SLOW_SYNC_IF_EXISTS")) {
        usleep(2500 * 1000);
    }
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(file);
}

int fsync(int file) { return sync_with("fsync", file); }
int fdatasync(int file) { return sync_with("fdatasync", file); }

/* Whether the quota forbids a write to this file; says so in errno. */
static int is_over_quota(int file) {
    const char *outbox = getenv("NO_QUOTA_FOR");
    if (outbox == NULL || !is_on("NO_QUOTA_IF_EXISTS")) {
        return 0;
    }
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) {
        return 0;
    }
    path[length] = 0;
    if (strncmp(path, outbox, strlen(outbox)) != 0) {
        return 0;
    }
    errno = EDQUOT;
    return 1;
}

ssize_t write(int file, const void *bytes, size_t count) {
    if (is_over_quota(file)) {
        return -1;
    }
    ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
    return real(file, bytes, count);
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t at) {
    if (is_over_quota(file)) {
        return -1;
    }
    ssize_t (*real)(int, const void *, size_t, off_t) = dlsym(RTLD_NEXT, "pwrite");
    return real(file, bytes, count, at);
}

ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t at) {
    if (is_over_quota(file)) {
        return -1;
    }
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    return real(file, bytes, count, at);
}

/* Only what makes the file longer takes room. */
static int grows(int file, off64_t length) {
    struct stat64 now;
    return fstat64(file, &now) == 0 && length > now.st_size;
}

int ftruncate(int file, off_t length) {
    if (grows(file, length) && is_over_quota(file)) {
        return -1;
    }
    int (*real)(int, off_t) = dlsym(RTLD_NEXT, "ftruncate");
    return real(file, length);
}

int ftruncate64(int file, off64_t length) {
    if (grows(file, length) && is_over_quota(file)) {
        return -1;
    }
    int (*real)(int, off64_t) = dlsym(RTLD_NEXT, "ftruncate64");
    return real(file, length);
}

int fallocate(int file, int mode, off_t at, off_t length) {
    if (is_over_quota(file)) {
        return -1;
    }
    int (*real)(int, int, off_t, off_t) = dlsym(RTLD_NEXT, "fallocate");
    return real(file, mode, at, length);
}

int posix_fallocate(int file, off_t at, off_t length) {
    if (is_over_quota(file)) {
        return EDQUOT;
    }
    int (*real)(int, off_t, off_t) = dlsym(RTLD_NEXT, "posix_fallocate");
    return real(file, at, length);
}
