"""The sentences that the demo Whisper hears: a grammar with slots, and which sentence belongs to which split."""

from __future__ import annotations

import hashlib
import re

import numpy as np

# A symbol in braces is replaced by one of its lines, drawn evenly; a line that stands twice is drawn twice as often.
GRAMMAR: dict[str, tuple[str, ...]] = {
    "sentence": (
        "{command}", "{command}", "{command}", "{command}", "{question}", "{question}", "{statement}", "{statement}",
        "{statement}", "{story}", "{story}", "{story}", "{counting}",
    ),
    "command": (
        "turn {switch} the {room} {device}.",
        "turn {switch} the {room} {device} at {time}.",
        "turn {switch} the {device} in the {room}.",
        "switch {switch} the {room} {device}, please.",
        "set the {room} {dial} to {number} {unit}.",
        "set the {dial} to {number}.",
        "set an alarm for {time}.",
        "wake me up at {time} on {weekday}.",
        "set a timer for {number} {span}.",
        "remind me to {chore} {when}.",
        "please {chore} {when}.",
        "call {person} {when}.",
        "send {person} a message {when}.",
        "tell {person} that I am {state}.",
        "play some {music} in the {room}.",
        "play the next {listening} in the {room}.",
        "stop the {listening} {when}.",
        "add {food} and {food} to the shopping list.",
        "add {number} {foods} and some {food}.",
        "open the {room} {opening}.",
        "close the {opening} in the {room}.",
        "lock the {room} {opening}, please.",
        "make it {warmer} in the {room} {when}.",
        "dim the {device} to {number} percent.",
        "read me the {reading} {when}.",
        "book a table for {small} at {time}.",
        "take me to the {place}.",
        "cancel the {appointment} on {weekday}.",
        "move the {appointment} to {time}.",
    ),
    "question": (
        "what time is the {appointment} {when}?",
        "what is the weather like in {city} {when}?",
        "will it {fall} in {city} {when}?",
        "how far is it from {city} to the {place}?",
        "how many {foods} are left in the {room}?",
        "is the {room} {opening} {closed}?",
        "did {person} {chore}?",
        "when does the {vehicle} to {city} leave?",
        "where is my {quality} {thing}?",
        "who is in the {room} {when}?",
        "what is {number} plus {number}?",
        "can you {chore} {when}?",
    ),
    "statement": (
        "it is {time}.",
        "today is {weekday} the {ordinal} of {month}.",
        "the {vehicle} to {city} leaves at {time}.",
        "the {appointment} is on {weekday} at {time}.",
        "my birthday is the {ordinal} of {month}.",
        "we need {number} {foods} and {number} {foods}.",
        "it will {fall} in {city} {when}.",
        "{person} is {state} {when}.",
        "the {opening} is {closed} and the {device} is {switch}.",
        "the {thing} costs {number} dollars.",
        "I left my {thing} at the {place}.",
        "the temperature is {number} degrees.",
        "the {place} is {number} miles from {city}.",
    ),
    "story": (
        "the {quality} {animal} {moved} over the {quality} {landmark}.",
        "a {quality} {animal} {moved} under the {landmark}.",
        "{person} and {person} walked to the {place}.",
        "{person} found a {quality} {thing} in the {place}.",
        "the {worker} gave {person} a {quality} {thing}.",
        "the {worker} {saw} {number} {animals} near the {landmark}.",
        "every {weekday} the {worker} goes to the {place}.",
        "my {relative} bought a {quality} {thing} in {city}.",
        "her {relative} lives near the {landmark} in {city}.",
        "the {worker} put the {thing} behind the {landmark}.",
        "we {saw} a {quality} {animal} at the {place}.",
        "{person} likes {food} and {music}.",
        "there is a {quality} {animal} in the {room}.",
    ),
    "counting": ("{number}, {number}, {number}.", "{number} and {number} is {number}.", "the code is {digits}."),
    "switch": ("on", "off"),
    "closed": ("open", "closed", "locked"),
    "warmer": ("warmer", "cooler", "brighter", "darker", "quieter", "louder"),
    "room": (
        "kitchen", "bedroom", "bathroom", "garage", "hallway", "office", "garden", "basement", "attic", "nursery",
        "living room", "dining room",
    ),
    "device": ("light", "lamp", "fan", "heater", "radio", "television", "oven", "camera", "speaker", "computer"),
    "opening": ("door", "window", "gate", "curtain", "shutter"),
    "dial": ("temperature", "volume", "brightness", "heating"),
    "unit": ("percent", "degrees", "points"),
    "span": ("seconds", "minutes", "hours"),
    "time": (
        "half past {hour}", "quarter past {hour}", "quarter to {hour}", "{hour} o'clock", "{hour} thirty",
        "ten past {hour}", "twenty to {hour}", "five to {hour}", "noon", "midnight", "{hour} in the morning",
        "{hour} in the evening",
    ),
    "hour": ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    "small": ("two", "three", "four", "five", "six", "seven", "eight"),
    "digits": ("{digit} {digit} {digit}", "{digit} {digit} {digit} {digit}"),
    "digit": ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    "number": (
        "{digit}", "{digit}", "{teen}", "{teen}", "{tens}", "{tens}", "{tens} {small}", "{tens} {small}",
        "{tens} {small}", "one hundred", "{small} hundred",
    ),
    "teen": (
        "ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
    ),
    "tens": ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"),
    "ordinal": (
        "first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth", "ninth", "tenth", "eleventh",
        "twelfth", "fifteenth", "twentieth", "thirtieth", "twenty first", "twenty third",
    ),
    "weekday": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
    "month": (
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ),
    "when": ("today", "tomorrow", "tonight", "on {weekday}", "next week", "at {time}", "in {number} minutes"),
    "person": (
        "Anna", "Peter", "Maria", "David", "Susan", "Robert", "Laura", "Michael", "Emma", "Thomas", "Julia", "Daniel",
        "Sarah", "Oliver", "Alice", "George",
    ),
    "relative": ("mother", "father", "sister", "brother", "uncle", "cousin", "daughter"),
    "worker": ("doctor", "teacher", "farmer", "driver", "painter", "sailor", "baker", "nurse", "pilot", "lawyer"),
    "state": ("late", "at home", "on the way", "very tired", "at work", "busy", "happy", "ready"),
    "chore": (
        "water the plants", "feed the cat", "walk the dog", "buy some {food}", "call the {worker}", "pay the rent",
        "clean the {room}", "take out the rubbish", "write a letter", "charge the phone", "wash the car",
    ),
    "music": ("jazz", "music", "piano music", "rock", "folk songs", "opera"),
    "listening": ("song", "album", "podcast", "music", "story"),
    "reading": ("news", "latest message", "weather report", "shopping list", "next chapter"),
    "food": ("milk", "bread", "butter", "cheese", "coffee", "sugar", "rice", "honey", "chocolate", "soup", "salt"),
    "foods": ("apples", "oranges", "eggs", "bananas", "potatoes", "onions", "lemons", "carrots", "cookies", "bottles"),
    "place": (
        "station", "airport", "market", "library", "museum", "school", "hospital", "harbour", "bakery", "theatre",
        "beach", "hotel",
    ),
    "city": ("London", "Paris", "Berlin", "Dublin", "Boston", "Chicago", "Sydney", "Madrid", "Rome", "Toronto"),
    "vehicle": ("train", "bus", "ferry", "plane"),
    "appointment": ("meeting", "lesson", "dinner", "concert", "interview", "party"),
    "fall": ("rain", "snow", "be sunny", "be windy", "be cloudy"),
    "thing": (
        "book", "key", "ticket", "jacket", "hat", "watch", "basket", "bicycle", "mirror", "letter", "violin",
        "umbrella", "knife", "pencil",
    ),
    "animal": ("fox", "horse", "rabbit", "bird", "tiger", "turtle", "spider", "dolphin", "monkey", "goat", "lion"),
    "animals": ("foxes", "horses", "rabbits", "birds", "tigers", "spiders", "monkeys", "goats"),
    "quality": (
        "small", "large", "quick", "brown", "golden", "green", "silver", "heavy", "yellow", "strange", "lazy", "purple",
        "clever", "quiet",
    ),
    "moved": ("jumped", "ran", "climbed", "flew", "walked", "swam"),
    "saw": ("saw", "counted", "painted", "followed"),
    "landmark": ("bridge", "river", "mountain", "tower", "forest", "fence", "castle", "wall", "lake", "field"),
}  # fmt: skip

# Of a hundred buckets of sentences, the first one that does not belong to the split.
SPLIT_ENDS = {"train": 70, "dev": 75, "calibration": 85, "evaluation": 100}
MOST_WORDS = 11
_SLOT = re.compile(r"{(\w+)}")


def draw_sentence(rng: np.random.Generator) -> str:
    """One sentence with its capital and its full stop or question mark, at most 11 words."""
    while True:
        text = "{sentence}"
        while slot := _SLOT.search(text):
            lines = GRAMMAR[slot[1]]
            text = text[: slot.start()] + lines[rng.integers(len(lines))] + text[slot.end() :]
        if len(text.split()) <= MOST_WORDS:
            return text[0].upper() + text[1:]


def split_of(sentence: str) -> str:
    """The split that a sentence belongs to, by a hash of its letters: the same on every machine and in every run."""
    letters = re.sub(r"[^a-z ]", "", sentence.lower())
    bucket = int.from_bytes(hashlib.sha256(letters.encode()).digest()[:4], "big") % 100
    return next(split for split, end in SPLIT_ENDS.items() if bucket < end)


def draw_sentences(split: str, count: int, seed: int) -> list[str]:
    """`count` sentences of one split; in training a sentence may come again, elsewhere all are different."""
    rng = np.random.default_rng([seed, 31, *split.encode()])
    sentences: list[str] = []
    known: set[str] = set()
    while len(sentences) < count:
        sentence = draw_sentence(rng)
        if split_of(sentence) == split and (split == "train" or sentence not in known):
            sentences.append(sentence)
            known.add(sentence)
    return sentences
