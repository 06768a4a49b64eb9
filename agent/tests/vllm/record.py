"""Records the KV events of a running vLLM, byte for byte, for the decoder's tests.

    python record.py http://127.0.0.1:PORT MODEL OUT

The engine should be fresh, with a cache of few blocks (`--num-gpu-blocks-override 80`), so that it has
to throw blocks out. Asks for a few chats, resets the cache, then takes all batches from the replay
socket and writes each as [length: u32 little-endian][payload] to OUT.
"""

import json
import struct
import sys
import urllib.request

import zmq

END = b"\xff" * 8
ENDS = 10


def ask(url, path, body):
    request = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return answer.read()


def talk(url, model):
    """Ten chats of two turns: the second finds the first, and the cache does not hold them all."""
    for number in range(ENDS):
        words = " ".join(f"number {number} word {at} of the story" for at in range(60))
        chat = [{"role": "user", "content": words}]
        for turn in range(2):
            body = {"model": model, "messages": chat, "max_tokens": 8, "temperature": 0, "seed": 1, "ignore_eos": True}
            if number == ENDS - 1:
                body["cache_salt"] = "salt"
            answer = json.loads(ask(url, "/v1/chat/completions", body))
            chat.append(answer["choices"][0]["message"] | {"role": "assistant"})
            chat[-1] = {"role": "assistant", "content": chat[-1]["content"] or ""}
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
    sources = json.loads(urllib.request.urlopen(url + "/kv_event_sources").read())
    with open(out, "wb") as file:
        for count, payload in enumerate(replayed(sources["0"]["replay_endpoint"]), 1):
            file.write(struct.pack("<I", len(payload)) + payload)
    print(count, "batches")


if __name__ == "__main__":
    main(*sys.argv[1:])
