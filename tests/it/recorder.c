/* Preloaded into the bridge by the power-cut test: writes down what is done to the files whose paths begin
 * with RECORD_FOR, in the file RECORD_TO, in the order in which it happens:
 *
 *   W  bytes written at an offset        B  a sync of a file begins        U  a name removed
 *   T  a file cut or grown to a length   S  …and has ended (of either)    D  the folder's sync ended
 *
 * Each entry is: kind (1 byte), length of the path (2), a number (8: offset, length, or which sync), length of
 * the bytes (4), path, bytes; numbers little-endian. Syncs only count as such: nothing is really synced, which
 * also makes them quick. While the file that HOLD_SYNC_IF_EXISTS names is there, a sync does not end. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static int record = -1;
static uint64_t syncs;

static ssize_t real_write(int file, const void *bytes, size_t count) {
    static ssize_t (*real)(int, const void *, size_t);
    if (real == NULL) real = (ssize_t(*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    return real(file, bytes, count);
}

/* What an open file is called, if it is one of those to be watched: 1 for a file, 2 for the folder. */
static int watched(int file, char path[PATH_MAX]) {
    const char *prefix = getenv("RECORD_FOR");
    if (prefix == NULL) return 0;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    if (strstr(path, "-shm") != NULL || strstr(path, " (deleted)") != NULL) return 0;
    if (strncmp(path, prefix, strlen(prefix)) == 0) return 1;
    size_t folder = (size_t)(strrchr(prefix, '/') - prefix);
    return (size_t)length == folder && strncmp(path, prefix, folder) == 0 ? 2 : 0;
}

/* The caller holds the mutex. */
static void put(char kind, const char *path, uint64_t number, const void *bytes, uint32_t count) {
    if (record < 0) {
        const char *to = getenv("RECORD_TO");
        if (to == NULL) return;
        record = open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (record < 0) abort();
    }
    uint16_t path_length = (uint16_t)strlen(path);
    size_t size = 15 + path_length + count;
    unsigned char *entry = malloc(size);
    if (entry == NULL) abort();
    entry[0] = (unsigned char)kind;
    memcpy(entry + 1, &path_length, 2);
    memcpy(entry + 3, &number, 8);
    memcpy(entry + 11, &count, 4);
    memcpy(entry + 15, path, path_length);
    if (count > 0) memcpy(entry + 15 + path_length, bytes, count);
    if (real_write(record, entry, size) != (ssize_t)size) abort();
    free(entry);
}

ssize_t write(int file, const void *bytes, size_t count) {
    char path[PATH_MAX];
    if (watched(file, path) != 1) return real_write(file, bytes, count);
    pthread_mutex_lock(&order);
    off64_t offset = lseek64(file, 0, SEEK_CUR);
    ssize_t written = real_write(file, bytes, count);
    int error = errno;
    if (written > 0) put('W', path, (uint64_t)offset, bytes, (uint32_t)written);
    pthread_mutex_unlock(&order);
    errno = error;
    return written;
}

static ssize_t write_at(const char *name, int file, const void *bytes, size_t count, off64_t offset) {
    ssize_t (*real)(int, const void *, size_t, off64_t) =
        (ssize_t(*)(int, const void *, size_t, off64_t))dlsym(RTLD_NEXT, name);
    char path[PATH_MAX];
    if (watched(file, path) != 1) return real(file, bytes, count, offset);
    pthread_mutex_lock(&order);
    ssize_t written = real(file, bytes, count, offset);
    int error = errno;
    if (written > 0) put('W', path, (uint64_t)offset, bytes, (uint32_t)written);
    pthread_mutex_unlock(&order);
    errno = error;
    return written;
}

ssize_t pwrite(int file, const void *bytes, size_t count, off_t offset) {
    return write_at("pwrite", file, bytes, count, offset);
}
ssize_t pwrite64(int file, const void *bytes, size_t count, off64_t offset) {
    return write_at("pwrite64", file, bytes, count, offset);
}

static int cut(const char *name, int file, off64_t length) {
    int (*real)(int, off64_t) = (int (*)(int, off64_t))dlsym(RTLD_NEXT, name);
    char path[PATH_MAX];
    if (watched(file, path) != 1) return real(file, length);
    pthread_mutex_lock(&order);
    int result = real(file, length);
    int error = errno;
    if (result == 0) put('T', path, (uint64_t)length, NULL, 0);
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}

int ftruncate(int file, off_t length) { return cut("ftruncate", file, length); }
int ftruncate64(int file, off64_t length) { return cut("ftruncate64", file, length); }

static int sync_with(const char *name, int file) {
    char path[PATH_MAX];
    int kind = watched(file, path);
    if (kind == 0) {
        int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
        return real(file);
    }
    pthread_mutex_lock(&order);
    uint64_t which = ((uint64_t)getpid() << 32) + ++syncs;
    put('B', path, which, NULL, 0);
    pthread_mutex_unlock(&order);
    const char *hold = getenv("HOLD_SYNC_IF_EXISTS");
    while (hold != NULL && access(hold, F_OK) == 0) usleep(1000);
    pthread_mutex_lock(&order);
    put(kind == 1 ? 'S' : 'D', path, which, NULL, 0);
    pthread_mutex_unlock(&order);
    return 0;
}

int fsync(int file) { return sync_with("fsync", file); }
int fdatasync(int file) { return sync_with("fdatasync", file); }

int unlink(const char *path) {
    int (*real)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
    const char *prefix = getenv("RECORD_FOR");
    if (prefix == NULL || strncmp(path, prefix, strlen(prefix)) != 0 || strstr(path, "-shm") != NULL) {
        return real(path);
    }
    pthread_mutex_lock(&order);
    int result = real(path);
    int error = errno;
    if (result == 0) put('U', path, 0, NULL, 0);
    pthread_mutex_unlock(&order);
    errno = error;
    return result;
}
