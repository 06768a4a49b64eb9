/* Uses every call of cognitora_kv.h against the daemon whose socket is named, and says where it went wrong. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cognitora_kv.h"

#define CHECK(what)                                                                   \
    do {                                                                              \
        if (!(what)) {                                                                \
            fprintf(stderr, "line %d: %s: %s\n", __LINE__, #what, cgn_kv_error());    \
            exit(1);                                                                  \
        }                                                                             \
    } while (0)

enum { LEN = 300000, BLOCKS = 3 };

static void misuse(const char *path) {
    cgn_kv *kv = NULL;
    CHECK(cgn_kv_connect("/nowhere/kv.sock", "c", NULL, &kv) == CGN_KV_CONNECT && kv == NULL);
    CHECK(strstr(cgn_kv_error(), "/nowhere/kv.sock") != NULL);
    CHECK(cgn_kv_connect(NULL, "c", NULL, &kv) == CGN_KV_INVALID);
    CHECK(cgn_kv_connect(path, "c", NULL, NULL) == CGN_KV_INVALID);
    CHECK(cgn_kv_connect(path, "\xff", NULL, &kv) == CGN_KV_INVALID);
    CHECK(cgn_kv_connect(path, "", NULL, &kv) == CGN_KV_INVALID);
    CHECK(cgn_kv_lookup(NULL, NULL, 0, NULL) == CGN_KV_INVALID);
    cgn_kv_close(NULL);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    misuse(argv[1]);
    cgn_kv *kv = NULL;
    cgn_kv_options options = {"c-program", 4 << 20, 60000, 1};
    CHECK(cgn_kv_connect(argv[1], "c", &options, &kv) == 0);

    uint8_t names[BLOCKS][CGN_KV_NAME_BYTES];
    uint8_t *bytes = malloc(LEN);
    CHECK(bytes != NULL);
    for (int i = 0; i < BLOCKS; i++) memset(names[i], i + 1, sizeof names[i]);
    for (int i = 0; i < LEN; i++) bytes[i] = (uint8_t)(i * 31);

    /* One by a copy, and its child made in place. */
    uint8_t *place = NULL;
    CHECK(cgn_kv_reserve(kv, LEN, &place) == 0);
    memset(place, 7, LEN);
    cgn_kv_new blocks[2] = {
        {names[0], NULL, bytes, LEN, (const uint8_t *)"label", 5},
        {names[1], names[0], place, LEN, NULL, 0},
    };
    int32_t results[BLOCKS] = {0};
    CHECK(cgn_kv_put(kv, blocks, 2, 0, results) == 2 && results[0] == 1 && results[1] == 1);
    CHECK(cgn_kv_unreserve(kv, place) == CGN_KV_INVALID);
    CHECK(cgn_kv_reserve(kv, 10, &place) == 0 && cgn_kv_unreserve(kv, place) == 0);
    CHECK(cgn_kv_reserve(kv, 5 << 20, &place) == CGN_KV_STAGING_FULL);
    CHECK(cgn_kv_put(kv, NULL, 1, 0, NULL) == CGN_KV_INVALID);
    cgn_kv_new orphan = {names[0], names[2], bytes, 10, NULL, 0};
    CHECK(cgn_kv_put(kv, &orphan, 1, 0, results) == 0 && results[0] == CGN_KV_PARENT_MISSING);

    uint8_t tiers[BLOCKS] = {0};
    CHECK(cgn_kv_lookup(kv, names[0], BLOCKS, tiers) == 2);
    CHECK(tiers[0] == CGN_KV_RAM && tiers[1] == CGN_KV_RAM && tiers[2] == 0);

    cgn_kv_block got[BLOCKS];
    CHECK(cgn_kv_get(kv, names[0], BLOCKS, 0, got) == 2);
    CHECK(got[0].status == CGN_KV_LEASED && got[0].len == LEN && memcmp(got[0].bytes, bytes, LEN) == 0);
    CHECK(got[1].status == CGN_KV_LEASED && got[1].bytes[LEN - 1] == 7);
    CHECK(got[2].status == CGN_KV_MISSING && got[2].bytes == NULL);
    uint64_t leases[2] = {got[0].lease, got[1].lease};
    CHECK(cgn_kv_release(kv, leases, 2) == 0);
    CHECK(cgn_kv_get(kv, NULL, 1, 0, got) == CGN_KV_INVALID);
    CHECK(cgn_kv_get(kv, names[0], (size_t)-1, 0, got) == CGN_KV_INVALID);

    cgn_kv_block polled;
    CHECK(cgn_kv_poll_get(kv, names[0], &polled) == 1);
    CHECK(polled.len == LEN && memcmp(polled.bytes, bytes, LEN) == 0);
    CHECK(cgn_kv_poll_release(kv, polled.lease) == 0);
    CHECK(cgn_kv_poll_get(kv, names[2], &polled) == 0 && polled.status == CGN_KV_MISSING);

    CHECK(cgn_kv_pin(kv, names[0], BLOCKS, 1, results) == 2 && results[2] == 0);
    CHECK(cgn_kv_pin(kv, names[0], BLOCKS, 0, NULL) == 2);
    CHECK(cgn_kv_prefetch(kv, names[0], BLOCKS, 60000) == 2);

    char text[65536];
    CHECK(cgn_kv_stats(kv, text, sizeof text) > 0 && strstr(text, "cgn_kvcached_") == text);
    CHECK(cgn_kv_stats(kv, text, 5) > 5 && strlen(text) == 4);

    CHECK(cgn_kv_remove(kv, names[1], 2, results) == 1 && results[0] == 1 && results[1] == 0);
    CHECK(cgn_kv_lookup(kv, names[0], BLOCKS, NULL) == 1);
    CHECK(cgn_kv_clear(kv) == 1 && cgn_kv_clear(kv) == 0);
    CHECK(cgn_kv_lookup(kv, names[0], BLOCKS, NULL) == 0);
    cgn_kv_close(kv);
    free(bytes);
    return 0;
}
