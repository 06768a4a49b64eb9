"""Records the KV events of a running vLLM, byte for byte, for the decoder's tests.

    python record.py http://127.0.0.1:PORT MODEL OUT

The engine should be fresh, with a cache of few blocks (`--num-gpu-blocks-override 80`), so that it has
to throw blocks out. Holds a few chats, then takes all batches from the replay socket and writes each as
[length: u32 little-endian][payload] to OUT.
"""

import json
import struct
import sys
import urllib.request

import zmq

END = b"\xff" * 8
CHATS = 10


def ask(url, path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())


def talk(url, model):
    """Chats of two turns: the second finds the first, and the cache does not hold them all."""
    for number in range(CHATS):
        words = " ".join(f"number {number} word {at} of the story" for at in range(60))
        chat = [{"role": "user", "content": words}]
        salt = {"cache_salt": "salt"} if number == CHATS - 1 else {}
        for turn in range(2):
            body = {"model": model, "messages": chat, "max_tokens": 8, "temperature": 0, "ignore_eos": True}
            answer = ask(url, "/v1/chat/completions", body | salt)
            content = answer["choices"][0]["message"]["content"] or ""
            chat.append({"role": "assistant", "content": content})
            chat.append({"role": "user", "content": f"and what comes next, turn {turn}"})


def replayed(endpoint):
    dealer = zmq.Context().socket(zmq.DEALER)
    dealer.setsockopt(zmq.RCVTIMEO, 30_000)
    dealer.connect(endpoint)
    dealer.send_multipart([b"", struct.pack(">q", 0)])
    while True:
        _, _, number, payload = dealer.recv_multipart()
        if number == END:
            return
        yield payload


def main(url, model, out):
    talk(url, model)
    with urllib.request.urlopen(url + "/kv_event_sources") as answer:
        source = json.loads(answer.read())["0"]
    batches = list(replayed(source["replay_endpoint"]))
    with open(out, "wb") as file:
        for payload in batches:
            file.write(struct.pack("<I", len(payload)) + payload)
    print(len(batches), "batches")


if __name__ == "__main__":
    main(*sys.argv[1:])
