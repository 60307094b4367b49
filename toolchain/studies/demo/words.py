"""Which words are said, in which accents, and which voices belong to which split."""

from __future__ import annotations

# The 35 words of Speech Commands v2 (Warden 2018, arXiv:1804.03209). Their order is the order of the model's labels.
WORDS = (
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy",
    "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop",
    "three", "tree", "two", "up", "visual", "wow", "yes", "zero",
)  # fmt: skip

# The Caribbean accent (en-029) is left out of the list: it says "three" and "tree" with almost the same sounds.
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-gbclan", "en-gb-x-rp", "en-gb-x-gbcwmd", "en-us-nyc")

# Voice variants of espeak-ng 1.51 by split. Variants that are versions of one voice (steph, steph2, steph3) share a
# split. `caleb` is the same sound as `klatt`, so it stays with the klatt family.
VOICES = {
    "train": (
        "f1", "f3", "f5", "m1", "m2", "m4", "m8", "Alex", "Andrea", "AnxiousAndy", "Andy", "Demonic", "Denis", "Diogo",
        "Henrique", "Jacky", "Marco", "Mike", "Nguyen", "RicishayMax", "RicishayMax2", "RicishayMax3", "Tweaky",
        "UniRobot", "adam", "announcer", "benjamin", "caleb", "croak", "grandma", "grandpa", "gustave", "iven",
        "iven2", "iven3", "iven4", "kaukovalta", "klatt", "klatt2", "klatt3", "klatt4", "klatt5", "marcelo", "michel",
        "miguel", "robosoft", "robosoft2", "robosoft3", "robosoft4", "robosoft5", "robosoft6", "robosoft7",
        "robosoft8", "shelby", "whisper", "whisperf", "norbert", "sandro",
    ),
    "dev": ("m6", "aunty", "ed", "edward", "edward2", "mario", "pedro"),
    "calibration": (
        "f4", "m5", "Alicia", "david", "paul", "Hugo", "Lee", "max", "rob", "robert", "antonio", "anika", "anikaRobot",
    ),
    "evaluation": (
        "f2", "m3", "m7", "Annie", "belinda", "Michael", "linda", "john", "quincy", "travis", "victor", "pablo", "zac",
        "boris", "Gene", "Gene2", "steph", "steph2", "steph3",
    ),
}  # fmt: skip
