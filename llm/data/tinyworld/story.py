"""One story while it is told: who plays which role, and the world that follows what is said.

It has what every plot needs: a role's word, the pools that nobody has taken from, feelings, and an ending.

Left out: what happens (`plots.py`). Read next: `plots.py`.
"""

from llm.data.tinyworld.grammar import AnyPool, Entry, Teller
from llm.data.tinyworld.world import World

# What stands for these roles in the eye of a reader who does not know the story; `thing2` is a `thing` by its name.
ROLE_POOLS = {"hero": "person", "friend": "person", "other": "person", "helper": "animal", "thief": "animal"}
MOODS = ("glad", "proud", "calm", "sad", "sorry", "afraid", "cross")


class Story:
    """A teller and the world it tells of."""

    def __init__(self, teller: Teller) -> None:
        self.teller = teller
        self.say = teller.say
        self.world = World()
        self.plot = ""

    def __getitem__(self, role: str) -> Entry:
        return self.teller.cast[role]

    def any(self, pool: str) -> AnyPool:
        """The entries of a pool that have no role yet: nobody and nothing appears twice under two roles."""
        return self.teller.language.pools[pool].without(*self.teller.cast.values())

    def partner(self) -> AnyPool:
        """Those who may be the hero's friend in this story: no pronoun can then mean one of them for the other."""
        return self.any("boy" if self["hero"].forms["he"] in ("she", "她") else "girl")

    def feel(self, role: str, mood: str) -> None:
        self.say(f"feel.{role}", mood=self.teller.language.pools[mood])
        self.world.feel(self[role], self["mood"])

    def end(self, mood: str) -> None:
        self.say("around")
        self.say("end", mood=self.teller.language.pools[mood])
        self.world.feel(self["hero"], self["mood"])
        self.world.note("mood", self["mood"], who=self["hero"])
