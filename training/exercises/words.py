"""Names, things and facts that the templates are filled with."""

NAMES = (
    "Anna Ben Carla David Emma Felix Grace Henry Ivy Jack Karen Leo Mia Noah Olivia Paul Rosa Sam Tina Umar "
    "Vera Will Yara Zoe Liam Nina Oscar Ruth Tom Lucy"
).split()

THINGS = (
    "apples books marbles stickers pencils coins shells cards stamps cookies oranges flowers buttons beads toys "
    "candles bottles boxes eggs pears leaves stones ribbons badges plates cups postcards keys nuts plums"
).split()

PLACES = "market school library garden museum farm station park shop kitchen office beach".split()

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Portugal": "Lisbon",
    "Greece": "Athens", "Austria": "Vienna", "Poland": "Warsaw", "Hungary": "Budapest", "Ireland": "Dublin",
    "Norway": "Oslo", "Sweden": "Stockholm", "Finland": "Helsinki", "Denmark": "Copenhagen", "Russia": "Moscow",
    "Japan": "Tokyo", "China": "Beijing", "India": "New Delhi", "Egypt": "Cairo", "Kenya": "Nairobi",
    "Canada": "Ottawa", "Mexico": "Mexico City", "Cuba": "Havana", "Peru": "Lima", "Chile": "Santiago",
    "Argentina": "Buenos Aires", "Turkey": "Ankara", "Iran": "Tehran", "Iraq": "Baghdad", "Thailand": "Bangkok",
    "Vietnam": "Hanoi", "Belgium": "Brussels",
}
OPPOSITES = {
    "hot": "cold", "big": "small", "fast": "slow", "early": "late", "happy": "sad", "light": "dark",
    "open": "closed", "full": "empty", "hard": "soft", "high": "low", "young": "old", "rich": "poor",
    "strong": "weak", "wet": "dry", "clean": "dirty", "long": "short", "wide": "narrow", "thick": "thin",
    "loud": "quiet", "near": "far", "heavy": "light in weight", "sweet": "bitter", "true": "false", "first": "last",
    "up": "down", "left": "right", "day": "night", "win": "lose", "buy": "sell", "push": "pull",
}
YOUNG = {
    "dog": "puppy", "cat": "kitten", "cow": "calf", "horse": "foal", "sheep": "lamb", "pig": "piglet",
    "goat": "kid", "lion": "cub", "hen": "chick", "duck": "duckling", "goose": "gosling", "deer": "fawn",
    "frog": "tadpole", "swan": "cygnet", "kangaroo": "joey",
}
PAST = {
    "go": "went", "see": "saw", "eat": "ate", "take": "took", "give": "gave", "come": "came", "run": "ran",
    "write": "wrote", "speak": "spoke", "drink": "drank", "sing": "sang", "swim": "swam", "buy": "bought",
    "bring": "brought", "think": "thought", "catch": "caught", "teach": "taught", "find": "found", "hold": "held",
    "sleep": "slept", "keep": "kept", "feel": "felt", "leave": "left", "fall": "fell", "break": "broke",
    "choose": "chose", "drive": "drove", "fly": "flew", "grow": "grew", "know": "knew",
}
PLURALS = {
    "child": "children", "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "mouse": "mice",
    "goose": "geese", "leaf": "leaves", "knife": "knives", "wolf": "wolves", "city": "cities", "baby": "babies",
    "box": "boxes", "bus": "buses", "story": "stories", "person": "people", "loaf": "loaves", "ox": "oxen",
}
MEMBERS = {
    "an animal": "dog cat horse cow tiger rabbit elephant sheep".split(),
    "a fruit": "apple banana pear grape cherry plum peach lemon".split(),
    "a colour": "red blue green yellow purple orange brown pink".split(),
    "a tool": "hammer saw drill wrench chisel screwdriver shovel rake".split(),
    "a vehicle": "car bus train bicycle truck boat tram lorry".split(),
    "a musical instrument": "piano violin guitar flute drum trumpet harp cello".split(),
    "a piece of clothing": "shirt coat sock hat glove scarf jacket skirt".split(),
    "a part of the body": "hand knee elbow nose shoulder ear ankle chin".split(),
}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
).split()
