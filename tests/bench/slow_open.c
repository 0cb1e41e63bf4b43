/* Preloaded by the benchmark: each open of a file waits 0.3 ms first, as on a network file system. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <time.h>

#define SLOW(name)                                                            \
    int name(const char *path, int flags, ...)                               \
    {                                                                         \
        int (*original)(const char *, int, ...) = dlsym(RTLD_NEXT, #name);    \
        struct timespec delay = {0, 300000};                                  \
        va_list rest;                                                         \
        va_start(rest, flags);                                                \
        int mode = va_arg(rest, int);                                         \
        va_end(rest);                                                         \
        nanosleep(&delay, 0);                                                 \
        return original(path, flags, mode);                                   \
    }

SLOW(open)
SLOW(open64)
