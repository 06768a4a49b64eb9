/* The native client of the KV daemon cgn-kvcached, for C.
 *
 * A handle is a connection to one namespace. Blocks have names of 32 bytes; lists of names are the names
 * one after the other. A GET leases blocks: their bytes can be read in place, and do not change, until the
 * lease is released or the handle is closed. The memory is read-only.
 *
 * Threads: a handle may be used by several threads at once; their calls go one after the other, so that
 * threads that should not wait for each other have a handle each. cgn_kv_close must be the last call
 * on a handle, when no other runs. cgn_kv_error is about the calls of the calling thread. A handle must not be
 * used after fork() in the child.
 *
 * Numbers returned: 0 or more is success (a count where one is named). Below 0 is a failure:
 * -1 to -99 the daemon's, below that the client's. Pointers may be NULL only where it says so. At most
 * 1,048,576 blocks go in one call.
 */
#ifndef COGNITORA_KV_H
#define COGNITORA_KV_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define CGN_KV_NAME_BYTES 32
#define CGN_KV_LABEL_BYTES_MAX 1024

/* Failures of the daemon. */
#define CGN_KV_BUSY (-1)                /* no memory free that may be taken; try again */
#define CGN_KV_TOO_LARGE (-2)           /* longer than a block may be */
#define CGN_KV_QUOTA_EXCEEDED (-3)      /* the namespace has used what it may */
#define CGN_KV_PARENT_MISSING (-4)      /* put the parent first */
#define CGN_KV_CORRUPT (-5)             /* the block was damaged and is gone */
#define CGN_KV_DRAINING (-6)            /* the daemon is about to end */
#define CGN_KV_DISK (-7)                /* the disk tier failed */
#define CGN_KV_TOO_MANY_NAMESPACES (-8)
#define CGN_KV_TOO_MANY_LEASES (-9)     /* release some */
#define CGN_KV_OUTSIDE_STAGING (-10)
#define CGN_KV_NO_STAGING (-11)
#define CGN_KV_NOT_ALLOWED (-12)        /* for the daemon's own user or root */
#define CGN_KV_BAD_REQUEST (-13)
#define CGN_KV_VERSION (-14)            /* client and daemon are not of the same version */
#define CGN_KV_TOO_MANY_CLIENTS (-15)
#define CGN_KV_BAD_STAGING (-16)
#define CGN_KV_PEERS (-17)              /* no peer answered in time */
#define CGN_KV_INTERNAL (-18)
#define CGN_KV_NO_DISK (-19)            /* a durable put, and the daemon has no disk */
/* Failures of the client. */
#define CGN_KV_INVALID (-100)           /* an argument cannot be */
#define CGN_KV_CONNECT (-101)           /* there is no daemon at that path */
#define CGN_KV_LOST (-102)              /* the connection broke; close and connect again */
#define CGN_KV_WIRE (-103)              /* the daemon's answer cannot be read */
#define CGN_KV_TIMED_OUT (-104)         /* no answer in time; close and connect again */
#define CGN_KV_STAGING_FULL (-105)      /* the staging memory has no room for it in one piece */
#define CGN_KV_SYSTEM (-106)            /* the system refused memory or a descriptor */

/* Where a block lies. */
#define CGN_KV_RAM 1
#define CGN_KV_DISK_TIER 2

/* What cgn_kv_get says of a block, if it is no failure. */
#define CGN_KV_MISSING 0
#define CGN_KV_LEASED 1

typedef struct cgn_kv cgn_kv;

typedef struct cgn_kv_options {
    const char *client;     /* a name for the daemon's log, or NULL */
    uint64_t staging_bytes; /* memory to put blocks through; 0: this handle only reads */
    uint32_t timeout_ms;    /* longest wait for an answer; 0: 30,000 */
    uint32_t poll;          /* 1: cgn_kv_poll_get will be used */
} cgn_kv_options;

typedef struct cgn_kv_block {
    const uint8_t *bytes; /* NULL unless leased */
    uint64_t len;         /* in bytes */
    uint64_t lease;       /* for cgn_kv_release */
    int32_t status;       /* CGN_KV_LEASED, CGN_KV_MISSING, or a failure below 0 */
} cgn_kv_block;

typedef struct cgn_kv_new {
    const uint8_t *name;   /* 32 bytes */
    const uint8_t *parent; /* 32 bytes, the block before it in its prefix; or NULL */
    const uint8_t *bytes;  /* anywhere; what cgn_kv_reserve gave is put without a copy */
    uint64_t len;          /* in bytes, at least 1 */
    const uint8_t *label;  /* the client's own words for it; or NULL */
    uint64_t label_len;    /* in bytes, at most CGN_KV_LABEL_BYTES_MAX */
} cgn_kv_new;

/* Connects to the daemon whose socket (kv.uds) is at path. options may be NULL: 256 MiB of staging
 * memory. Returns 0 and writes *kv. */
int32_t cgn_kv_connect(const char *path, const char *namespace_name, const cgn_kv_options *options,
                       cgn_kv **kv);

/* Gives all leases and reserved memory back; their bytes must not be touched any more. NULL is nothing. */
void cgn_kv_close(cgn_kv *kv);

/* How many leading blocks are on the node, and in which tier each of these is: tiers has room for count
 * bytes, or is NULL. */
int64_t cgn_kv_lookup(const cgn_kv *kv, const uint8_t *names, size_t count, uint8_t *tiers);

/* Leases blocks, fetched from slower tiers if need be; what takes longer than deadline_ms (0: the daemon's
 * own limit) is missing. Writes count blocks; returns how many are leased. */
int64_t cgn_kv_get(const cgn_kv *kv, const uint8_t *names, size_t count, uint32_t deadline_ms,
                   cgn_kv_block *blocks);

/* Ends leases, each once. Returns 0. */
int64_t cgn_kv_release(const cgn_kv *kv, const uint64_t *leases, size_t count);

/* One block by shared memory: spins until the answer is there, and makes no system call while the daemon is
 * awake. Returns 1 if it is leased, 0 if it is missing. */
int64_t cgn_kv_poll_get(const cgn_kv *kv, const uint8_t *name, cgn_kv_block *block);

/* Ends a lease the same way. Returns 0. */
int64_t cgn_kv_poll_release(const cgn_kv *kv, uint64_t lease);

/* Memory of len bytes to make a block in, which cgn_kv_put takes without a copy. Returns 0 and writes *bytes.
 * It is the caller's until it is put, whatever the result, or given back. */
int64_t cgn_kv_reserve(const cgn_kv *kv, uint64_t len, uint8_t **bytes);
int64_t cgn_kv_unreserve(const cgn_kv *kv, const uint8_t *bytes);

/* Stores blocks, one after the other; with durable 1, returns when they are on disk for good. results has
 * room for count numbers (1 or a failure), or is NULL. Returns how many were stored. */
int64_t cgn_kv_put(const cgn_kv *kv, const cgn_kv_new *blocks, size_t count, int32_t durable,
                   int32_t *results);

/* Keeps blocks from eviction (pinned 1) or lets them go again (0); forgets blocks. results as above, 0 for a
 * block that is not there. Return how many were there. */
int64_t cgn_kv_pin(const cgn_kv *kv, const uint8_t *names, size_t count, int32_t pinned,
                   int32_t *results);
int64_t cgn_kv_remove(const cgn_kv *kv, const uint8_t *names, size_t count, int32_t *results);

/* Brings blocks into memory within deadline_ms. Returns how many are there or on their way. */
int64_t cgn_kv_prefetch(const cgn_kv *kv, const uint8_t *names, size_t count, uint32_t deadline_ms);

/* Forgets all blocks of the namespace. Returns how many. For the daemon's own user or root. */
int64_t cgn_kv_clear(const cgn_kv *kv);

/* The daemon's counters as text, a name and a number on each line, cut to room bytes with its final 0.
 * Returns the length of the whole text. */
int64_t cgn_kv_stats(const cgn_kv *kv, char *out, size_t room);

/* What the last failure of this thread was, for a person; valid until the next failure. */
const char *cgn_kv_error(void);

#ifdef __cplusplus
}
#endif

#endif
