"""LMCache's own RESP client (the extension `lmcache_redis` of its wheel) against the RESP door.

The extension is linked with libtorch but calls nothing of it; empty libraries of the names it asks for
on LD_LIBRARY_PATH are enough where torch is not installed.
"""

import importlib.util
import os
import select
import sys

spec = importlib.util.spec_from_file_location("lmcache_redis", os.environ["CGN_LMCACHE_REDIS"])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
client = module.LMCacheRedisClient("127.0.0.1", int(sys.argv[1]), 8, "", "")


def wait(number):
    while True:
        assert select.select([client.event_fd()], [], [], 60)[0], "no completion within a minute"
        for done, is_good, error, found in client.drain_completions():
            if done == number:
                assert is_good, error
                return found


size = 1 << 20
keys = [f"meta-llama/Llama-3.1-8B@1@0@{number:016x}@bfloat16" for number in range(24)]
chunks = [bytearray(os.urandom(size)) for _ in keys]
wait(client.submit_batch_set(keys, [memoryview(chunk) for chunk in chunks]))
assert list(wait(client.submit_batch_exists(keys + ["nope"]))) == [True] * len(keys) + [False]
fetched = [bytearray(size) for _ in keys]
wait(client.submit_batch_get(keys, [memoryview(chunk) for chunk in fetched]))
assert fetched == chunks
assert list(wait(client.submit_batch_delete(keys[:3] + ["nope"]))) == [True] * 3 + [False]
assert list(wait(client.submit_batch_exists(keys[:4]))) == [False] * 3 + [True]
client.close()
print("ok")
