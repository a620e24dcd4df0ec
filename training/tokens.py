"""pinhole's vocabulary in CLIP's tokenizer format: every caption word is one token, any other text falls to bytes.

    python tokens.py OUT_FOLDER
"""

import json
import sys
from pathlib import Path

from objects import OBJECTS
from scenes import COLOURS, PLACES, RELATIONS, SIZES, TIMES, WEATHERS

LENGTH = 32
START, END = "<|startoftext|>", "<|endoftext|>"
# Words people are likely to write beside those of the captions; untrained, but one token each.
OTHERS = """the of and with to is are at on in by near under over behind picture painting photo illustration image
one two three sky sun moon star stars cloud clouds water sea sand grass hill hills field road street window door roof
morning evening midnight noon dark bright light little large tiny huge old new beautiful cute happy simple style flat
background blurry ugly bad quality text people person man woman child landscape winter summer spring autumn gray grey
cyan gold silver golden above below beside front while snowing rainy foggy snowy cold warm""".split()


def byte_symbols():
    """CLIP's (GPT-2's) printable stand-ins for the 256 bytes, in its order."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + k) for k in range(len(others))]


def words():
    phrases = [*OBJECTS, *COLOURS, *PLACES.values(), *TIMES.values(), *WEATHERS.values(), *RELATIONS, *SIZES,
               "a an and picture drawing of during the day in daylight", ", .", *OTHERS]
    return list(dict.fromkeys(word for phrase in phrases for word in phrase.split()))


def merge(symbols, ranks):
    """Byte-pair encoding of one word with the merges there are."""
    while len(symbols) > 1:
        pairs = [(ranks[pair], k) for k, pair in enumerate(zip(symbols, symbols[1:])) if pair in ranks]
        if not pairs:
            break
        k = min(pairs)[1]
        symbols = [*symbols[:k], symbols[k] + symbols[k + 1], *symbols[k + 2:]]
    return symbols


def vocabulary():
    """(vocab: token -> id, merges: list of pairs). Later merges never undo an earlier word: they rank below its own."""
    merges, ranks = [], {}
    for word in words():
        symbols = merge([*word[:-1], word[-1] + "</w>"], ranks)
        while len(symbols) > 1:
            pair = (symbols[0], symbols[1])
            ranks[pair] = len(merges)
            merges.append(pair)
            symbols = [symbols[0] + symbols[1], *symbols[2:]]
    base = byte_symbols()
    tokens = [*base, *(s + "</w>" for s in base), *dict.fromkeys(a + b for a, b in merges), START, END]
    return {token: k for k, token in enumerate(tokens)}, merges


def write(folder):
    """vocab.json, merges.txt and the configs beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges))
    config = {"add_prefix_space": False, "bos_token": START, "do_lower_case": True, "eos_token": END, "errors": "replace",
              "model_max_length": LENGTH, "pad_token": END, "tokenizer_class": "CLIPTokenizer", "unk_token": END}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    special = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2) + "\n")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
