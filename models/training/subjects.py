"""The subjects the model can draw: names, synonyms, plurals and how each behaves in a scene.

Names and synonyms follow the labels and tags of emojibase-data 17.0.0 (MIT, from Unicode CLDR), picked by hand: a tag
such as "animal" fits too many subjects to be a name. Pictures are named by code point, as in the picture package.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

_TABLE = """
# code | name | synonyms (a / b=plural gives an irregular plural) | kind | flags
# kind: person, animal, being, vehicle, food, plant, building, object
# flags: m/f one gender only; air = floats freely; hand = can be held; mount:x,depth = can be ridden at x of its width,
# the rider sunk by depth; back = stands behind others well; full = a whole body, head = only a head
1f9d1-200d-1f680|astronaut|spaceman=spacemen/cosmonaut|person|
1f9d1-200d-2695|doctor|physician/nurse|person|
1f9d1-200d-1f373|chef|cook|person|
1f9d1-200d-1f33e|farmer|gardener|person|
1f9d1-200d-1f692|firefighter|fireman=firemen|person|
1f46e|police officer|policeman=policemen/cop|person|
1f9d1-200d-1f52c|scientist|chemist|person|
1f9d1-200d-1f3a8|painter|artist|person|
1f9d1-200d-2708|pilot|aviator|person|
1f575|detective|spy=spies|person|
1f482|royal guard|guard|person|
1f977|ninja||person|
1f477|construction worker|builder|person|
1f934|prince|king|person|m
1f478|princess|queen|person|f
1f9d9|wizard|mage/sorcerer|person|
1f9b8|superhero=superheroes|hero=heroes|person|
1f9db|vampire|dracula|person|
1f9dd|elf=elves||person|
1f9da|fairy=fairies|pixie|person|full,air
1f9dc|mermaid||person|f,full
1f9df|zombie|undead|person|
1f385|santa claus=santa clauses|santa/father christmas|person|head
1f476|baby=babies|infant|person|head
1f9cd|man=men|guy|person|m,full
1f9cd|woman=women|lady=ladies|person|f,full
1f483|dancer|dancing woman=dancing women|person|full
1f916|robot|android|being|head
1f47b|ghost|spook|being|air
1f47d|alien|extraterrestrial|being|head
1f921|clown||being|head
26c4|snowman=snowmen||being|
1f9f8|teddy bear|teddy/toy bear|being|hand
1f383|jack-o-lantern|pumpkin|being|
1f40e|horse|pony=ponies/stallion|animal|mount:0.70,0.07
1f415|dog|puppy=puppies/hound|animal|mount:0.50,0.06
1f408|cat|kitten/kitty=kitties|animal|mount:0.50,0.05
1f98a|fox=foxes||animal|head
1f43a|wolf=wolves||animal|head
1f981|lion||animal|head
1f405|tiger||animal|mount:0.55,0.05
1f406|leopard|cheetah|animal|mount:0.55,0.05
1f43b|bear|brown bear|animal|head
1f43c|panda|panda bear|animal|head
1f428|koala||animal|head
1f407|rabbit|bunny=bunnies/hare|animal|
1f401|mouse=mice||animal|
1f416|pig|piglet/hog|animal|mount:0.52,0.06
1f404|cow||animal|mount:0.55,0.06
1f411|sheep=sheep|lamb|animal|mount:0.55,0.06
1f410|goat||animal|mount:0.55,0.06
1f42a|camel|dromedary=dromedaries|animal|mount:0.50,0.08
1f999|llama|alpaca|animal|mount:0.58,0.06
1f992|giraffe||animal|mount:0.68,0.06
1f418|elephant||animal|mount:0.50,0.05
1f98f|rhino|rhinoceros=rhinoceroses|animal|mount:0.52,0.05
1f993|zebra||animal|mount:0.56,0.07
1f98c|deer=deer|stag|animal|mount:0.55,0.06
1f998|kangaroo||animal|
1f412|monkey|chimp|animal|
1f43f|squirrel|chipmunk|animal|
1f987|bat||animal|air
1f984|unicorn||animal|head
1f414|chicken|hen|animal|head
1f413|rooster|cock|animal|
1f427|penguin||animal|
1f989|owl||animal|
1f986|duck|mallard|animal|mount:0.60,0.05
1f9a2|swan||animal|mount:0.60,0.05
1f9a9|flamingo||animal|
1f99a|peacock||animal|
1f99c|parrot|macaw|animal|
1f438|frog|toad|animal|head
1f40a|crocodile|alligator|animal|
1f422|turtle|tortoise|animal|mount:0.42,0.04
1f40d|snake|serpent|animal|
1f409|dragon||animal|
1f995|brontosaurus=brontosauruses|long-necked dinosaur/sauropod|animal|mount:0.58,0.05
1f996|dinosaur|t-rex=t-rexes/tyrannosaurus=tyrannosauruses|animal|mount:0.60,0.05
1f433|whale||animal|air
1f42c|dolphin|porpoise|animal|air
1f9ad|seal|sea lion|animal|
1f420|fish=fish|tropical fish=tropical fish|animal|air
1f988|shark||animal|air
1f419|octopus=octopuses|squid|animal|
1fabc|jellyfish=jellyfish||animal|air
1f980|crab||animal|
1f40c|snail|slug|animal|mount:0.55,0.04
1f98b|butterfly=butterflies|moth|animal|air
1f41d|bee|honeybee/bumblebee|animal|air
1f577|spider|tarantula|animal|
1f339|rose|red rose|plant|hand
1f33b|sunflower||plant|hand
1f337|tulip||plant|hand
1f335|cactus=cacti||plant|
1f334|palm tree|palm|plant|back
1f333|tree|oak|plant|back
1f332|pine tree|fir tree|plant|back
1f344|mushroom|toadstool|plant|hand
1f384|christmas tree|xmas tree|plant|back
1f34e|apple|red apple|food|hand
1f34c|banana||food|hand
1f34a|orange|tangerine|food|hand
1f34b|lemon||food|hand
1f353|strawberry=strawberries||food|hand
1f347|bunch of grapes=bunches of grapes|grape|food|hand
1f349|watermelon|slice of watermelon=slices of watermelon|food|hand
1f34d|pineapple||food|hand
1f352|cherry=cherries|pair of cherries=pairs of cherries|food|hand
1f951|avocado||food|hand
1f955|carrot||food|hand
1f35e|loaf of bread=loaves of bread|bread=breads|food|hand
1f950|croissant||food|hand
1f9c0|cheese=cheeses|piece of cheese=pieces of cheese|food|hand
1f354|burger|hamburger/cheeseburger|food|hand
1f35f|french fries=french fries|chips=chips/fries=fries|food|hand
1f355|pizza|slice of pizza=slices of pizza|food|hand
1f32d|hot dog||food|hand
1f32e|taco||food|hand
1f366|ice cream|ice cream cone|food|hand
1f369|donut|doughnut|food|hand
1f382|birthday cake|cake|food|hand
1f9c1|cupcake|muffin|food|hand
1f36d|lollipop|candy=candies|food|hand
2615|cup of coffee=cups of coffee|coffee|food|hand
1fad6|teapot|kettle|food|hand
1f37f|popcorn=popcorn|bucket of popcorn=buckets of popcorn|food|hand
1f697|car|automobile|vehicle|mount:0.50,0.03
1f695|taxi|cab|vehicle|
1f68c|bus=buses|school bus=school buses|vehicle|back
1f692|fire truck|fire engine|vehicle|back
1f691|ambulance||vehicle|back
1f69c|tractor||vehicle|mount:0.60,0.05
1f69a|truck|lorry=lorries|vehicle|back
1f3ce|race car|racing car|vehicle|
1f3cd|motorcycle|motorbike|vehicle|mount:0.64,0.06
1f6f5|scooter|moped|vehicle|mount:0.60,0.06
1f6b2|bicycle|bike|vehicle|mount:0.64,0.03
1f6f9|skateboard||vehicle|
1f682|train|locomotive/steam engine|vehicle|back
26f5|sailboat|boat/yacht|vehicle|
2708|airplane|plane/aeroplane|vehicle|air
1f681|helicopter|chopper|vehicle|air
1f680|rocket|spaceship/space shuttle|vehicle|air
1f6f8|flying saucer|ufo|vehicle|air
1f3e0|house|home/cottage|building|back
1f3f0|castle|palace|building|back
26ea|church=churches|chapel|building|back
26fa|tent|camping tent|building|back
1f3a1|ferris wheel|big wheel|building|back
1f3aa|circus tent|circus=circuses|building|back
26f2|fountain||building|
1f388|balloon|red balloon|object|hand,air
2602|umbrella|parasol|object|hand
1f3b8|guitar|electric guitar|object|hand
1f941|drum||object|hand
1f3ba|trumpet||object|hand
1f3bb|violin|fiddle|object|hand
1f4f7|camera||object|hand
1f4bb|laptop|computer/notebook|object|hand
1f4fa|television|tv|object|
1f4a1|light bulb|lightbulb|object|hand
1f56f|candle||object|hand
1f4d5|book|red book|object|hand
1f381|gift|present|object|hand
1f3c6|trophy=trophies|golden cup|object|hand
1f451|crown|golden crown|object|hand
1f511|key|golden key|object|hand
1f514|bell|golden bell|object|hand
26bd|soccer ball|football|object|hand
1f3c0|basketball||object|hand
1fa81|kite||object|hand,air
1f3b2|die=dice||object|hand
1f48e|diamond|gem/jewel|object|hand
2764|heart|red heart|object|hand,air
2b50|star|yellow star/golden star|object|hand,air
1f3a9|top hat||object|hand
1f308|rainbow||object|air,back
1f525|fire|flame/campfire|object|
1fa90|ringed planet|saturn|object|air
"""


@dataclass(frozen=True)
class Subject:
    """One thing the model can draw.

    Attributes:
        index: Position in the table; the judge's label.
        code: Code points of the neutral picture, lower case hexadecimal joined by "-", without variation selectors.
        names: (singular, plural) pairs; the first pair is the canonical name.
        kind: person, animal, being, vehicle, food, plant, building or object.
        flags: Words that say how it behaves in a scene.
        saddle: Where a rider sits, as (fraction of the width, depth as a fraction of the height), or None.
    """

    index: int
    code: str
    names: tuple[tuple[str, str], ...]
    kind: str
    flags: frozenset[str]
    saddle: tuple[float, float] | None

    @property
    def name(self) -> str:
        """The canonical singular name."""
        return self.names[0][0]

    @property
    def alive(self) -> bool:
        """Whether it can ride, hold and be met."""
        return self.kind in {"person", "animal", "being"}


def plural_of(noun: str) -> str:
    """Return the regular English plural of a noun (its last word is inflected)."""
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    if noun.endswith("y") and noun[-2:-1] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def _pair(word: str) -> tuple[str, str]:
    singular, _, plural = word.partition("=")
    return singular, plural or plural_of(singular)


@functools.cache
def subjects() -> tuple[Subject, ...]:
    """Parse the table once.

    Returns:
        All subjects in the order of the table.
    """
    out: list[Subject] = []
    for line in _TABLE.strip().splitlines():
        if line.startswith("#"):
            continue
        code, name, synonyms, kind, flag_text = line.split("|")
        saddle: tuple[float, float] | None = None
        flags: list[str] = []
        rest = flag_text
        if "mount:" in rest:
            rest, _, numbers = rest.partition("mount:")
            x, depth = numbers.split(",")
            saddle = (float(x), float(depth))
            flags.append("mount")
        flags.extend(flag for flag in rest.split(",") if flag)
        names = tuple(_pair(word) for word in [name, *(s for s in synonyms.split("/") if s)])
        out.append(Subject(len(out), code, names, kind, frozenset(flags), saddle))
    return tuple(out)


@functools.cache
def by_name() -> dict[str, Subject]:
    """Map every singular and plural name to its subject."""
    table: dict[str, Subject] = {}
    for subject in subjects():
        for pair in subject.names:
            for word in pair:
                table.setdefault(word, subject)
    return table
