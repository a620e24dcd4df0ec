"""Writes merges.u16, CLIP's byte-pair merges in a compact form, from the list that OpenAI published with CLIP.

    pip download open_clip_torch==3.3.0 --no-deps && unzip open_clip_torch-*.whl open_clip/bpe_simple_vocab_16e6.txt.gz
    python models/clip/make_merges.py open_clip/bpe_simple_vocab_16e6.txt.gz

The list's lines are pairs of token texts, in the order of their merging. A merge's result is the next token, so a pair of
token ids says the same as two texts: 4 bytes a merge, u16, little-endian.
"""

import gzip
import struct
import sys
from pathlib import Path

MERGES = 49152 - 256 - 2  # as many as CLIP uses of the list


def byte_tokens():
    """The tokens before the first merge: the 256 bytes as printable characters, then the same at the end of a word."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    base = [chr(byte) for byte in printable] + [chr(256 + k) for k in range(256 - len(printable))]
    return base + [text + "</w>" for text in base]


def main(path):
    lines = gzip.open(path, "rt", encoding="utf-8").read().split("\n")[1:MERGES + 1]
    ids = {text: k for k, text in enumerate(byte_tokens())}
    out = bytearray()
    for line in lines:
        left, right = line.split()
        out += struct.pack("<HH", ids[left], ids[right])
        ids[left + right] = len(ids)
    Path(__file__).with_name("merges.u16").write_bytes(out)
    print(len(out) // 4, "merges,", len(ids) + 2, "tokens")


if __name__ == "__main__":
    main(sys.argv[1])
