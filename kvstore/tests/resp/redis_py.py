"""redis-py against the RESP door: by RESP2 and RESP3, in pipelines, with large values."""

import os
import sys

try:
    import redis
except ImportError:
    print("skipped: redis-py is not installed (pip install redis)")
    sys.exit(0)

for protocol in (2, 3):
    client = redis.Redis(port=int(sys.argv[1]), protocol=protocol, decode_responses=False)
    value = os.urandom(2 << 20)
    assert client.ping()
    assert client.set("k", value) is True
    assert client.get("k") == value
    assert client.set("k", b"other", nx=True) is None
    assert client.exists("k", "nope") == 1
    assert client.strlen("k") == len(value)
    assert client.mset({"a": b"1", "b": b"2"}) is True
    assert client.mget("a", "nope", "b") == [b"1", None, b"2"]
    assert client.type("a") == b"string" and client.ttl("a") == -1
    try:
        client.set("k", value, ex=5)
        raise AssertionError("a key with an expiry was stored")
    except redis.ResponseError as error:
        assert "expiry is not supported" in str(error)
    pipeline = client.pipeline(transaction=False)
    for number in range(8):
        pipeline.set(f"p{number}", value)
        pipeline.get(f"p{number}")
    assert pipeline.execute() == [True, value] * 8
    assert sorted(client.scan_iter(match="p*", count=3)) == [b"p%d" % number for number in range(8)]
    assert client.info()["redis_version"].startswith("7.")
    assert client.delete(*[f"p{number}" for number in range(8)]) == 8
    assert client.get("p0") is None
    assert client.flushdb() and client.dbsize() == 0
print("ok")
