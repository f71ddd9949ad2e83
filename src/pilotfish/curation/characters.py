"""Classes of Unicode characters as bits of one table, for the kernels."""

from __future__ import annotations

import unicodedata
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "AFFIX",
    "ALPHA",
    "DIGIT",
    "LOWER",
    "N_KNOWN",
    "SPACE",
    "SYMBOL",
    "TERMINAL",
    "UPPER",
    "WORD",
    "tables",
]

ALPHA, DIGIT, SPACE, WORD, UPPER, LOWER = 1, 2, 4, 8, 16, 32
SYMBOL = 64  # what Gopher's count of words leaves out
AFFIX = 128  # split off from either end of a word
TERMINAL = 256  # ends a sentence

# Planes above are rare ideographs and private characters: the last entry, a letter, stands for them.
N_KNOWN = 0x20000

_TERMINALS = (
    "21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d 83e 964 965 104a 104b 1362 1367 1368 166e 1735 1736 17d4-17d6 "
    "17d9 17da 1803 1809 1944 1945 1aa8-1aab 1b5a 1b5b 1b5e 1b5f 1b7d 1b7e 1c3b 1c3c 1c7e 1c7f 203c 203d 2047-2049 "
    "2e2e 2e3c 2e53 2e54 3002 a4ff a60e a60f a6f3 a6f7 a876 a877 a8ce a8cf a92f a9c8 a9c9 aa5d-aa5f aaf0 aaf1 abeb "
    "fe52 fe56 fe57 ff01 ff0e ff1f ff61 10a56 10a57 10f55-10f59 10f86-10f89 11047 11048 110be-110c1 11141-11143 111c5 "
    "111c6 111cd 111de 111df 11238 11239 1123b 1123c 112a9 1144b 1144c 115c2 115c3 115c9-115d7 11641 11642 1173c-1173e "
    "11944 11946 11a42 11a43 11a9b 11a9c 11c41 11c42 11ef7 11ef8 11f43 11f44 16a6e 16a6f 16af5 16b37 16b38 16b44 16e98 "
    "1bc9f 1da88"
)
_SYMBOLS = "—”：％〈（、【」，】；“《„’´．–？！～«〉》）？。…►»"
_AFFIXES = "…,:;!?¿؟¡()[]{}<>_#*&。？！，、；：～·।،۔؛٪'\"”“`‘´’‚„»«「」『』（）〔〕【】《》〈〉⟦⟧"


@lru_cache(maxsize=1)
def tables() -> tuple[NDArray[np.uint16], NDArray[np.uint32]]:
    """Class bits and simple lower case of each character, (N_KNOWN + 1,) each.

    Examples
    --------
    >>> classes, lower = tables()
    >>> bool(classes[ord("é")] & ALPHA), chr(lower[ord("É")])
    (True, 'é')
    """
    classes = np.zeros(N_KNOWN + 1, dtype=np.uint16)
    lower = np.arange(N_KNOWN + 1, dtype=np.uint32)
    for code in range(N_KNOWN):
        if 0x18D80 <= code < 0x1AFF0 or 0xD800 <= code < 0xF900:
            continue
        character = chr(code)
        bits = 0
        if character.isalpha():
            bits |= ALPHA | WORD
            small = character.lower()
            if len(small) == 1 and small != character:
                lower[code] = ord(small)
            bits |= (UPPER if character.isupper() else 0) | (LOWER if character.islower() else 0)
        elif character.isalnum():
            bits |= WORD | (DIGIT if character.isdigit() else 0)
        elif character.isspace():
            bits |= SPACE
        elif code > 127:
            kind = unicodedata.category(character)
            if kind in ("Mn", "Mc"):
                bits |= WORD
            elif kind in ("So", "Sc"):
                bits |= AFFIX
            elif kind == "Cc":
                bits |= SYMBOL
        elif code != 95:
            bits |= SYMBOL
        classes[code] = bits
    classes[ord("_")] = WORD | SYMBOL
    for part in _TERMINALS.split():
        first, _, last = part.partition("-")
        classes[int(first, 16) : int(last or first, 16) + 1] |= TERMINAL | SYMBOL
    for character in _SYMBOLS:
        classes[ord(character)] |= SYMBOL
    for character in _AFFIXES + "$£€¥฿§%=—–":
        classes[ord(character)] |= AFFIX
    classes[N_KNOWN] = ALPHA | WORD
    return classes, lower
