"""What can happen: fifteen small plots, each a program of sentences and of acts in the world.

A plot says one sentence after the other and lets the world follow. Whatever is left to chance is chosen inside `say`:
which turn a story takes is the choice among the beats of one `say`, visible in the text at once. So the order of the
acts, the people who may appear and the feeling at the end follow from the text so far, and from nothing hidden.

Left out: the sentences themselves, `en.toml` and `zh.toml`, under the names of the beats used here.
Read next: `judge.py`.
"""

from collections.abc import Callable

from llm.data.tinyworld.grammar import Teller
from llm.data.tinyworld.story import Story


def lost(s: Story) -> None:
    """Something dear is gone; someone has seen it, took it, helps to look, or comforts."""
    world, hero, thing = s.world, s["hero"], s["thing"]
    world.own(hero, thing)
    world.lose(hero, thing)
    s.feel("hero", "sad")
    s.say("lost.search", place=s.any("place"))
    world.go(s["place"], hero)
    world.note("searched", s["place"], who=hero, item=thing)
    s.say("lost.meet", friend=s.partner())
    friend = s["friend"]
    world.go(s["place"], friend)
    turn = s.say("lost.seen", "lost.thief", "lost.help", "lost.gone",
                 place2=s.any("place"), spot2=s.any("spot"), thief=s.any("animal"))
    if turn == "lost.thief":
        s.say("lost.chase")
        world.go(s["place2"], hero)
        world.note("thief", s["thief"], item=thing)
        s.say("lost.bargain")
        world.find(hero, thing, s["place2"])
    elif turn == "lost.seen":
        s.say("lost.run")
        world.go(s["place2"], hero)
        s.say("lost.there")
        world.find(hero, thing, s["place2"])
    elif turn == "lost.help":
        s.say("lost.pull", spot2=s.any("spot"))
        world.go(s["place2"], hero, friend)
        world.find(friend, thing, s["place2"])
        world.give(friend, thing, hero)
    else:
        s.say("lost.nothing")
        world.go(s["place2"], hero, friend)
        s.say("lost.comfort", thing2=s.any("thing"), look2=s.any("look"))
        world.own(friend, s["thing2"])
        world.give(friend, s["thing2"], hero)
    s.end("calm" if turn == "lost.gone" else "glad")


def gift(s: Story) -> None:
    """A present must be earned first, and may turn out to be another one."""
    world, hero, friend = s.world, s["hero"], s["friend"]
    s.say("gift.poor")
    s.say("gift.work", place=s.any("place"), worker=s.any("worker"), chore=s.any("chore"))
    world.go(s["place"], hero)
    world.note("chore", s["chore"], who=hero)
    s.say("gift.labour")
    turn = s.say("gift.paid", "gift.sold", thing2=s.any("thing"), look2=s.any("look"))
    present = s["thing"] if turn == "gift.paid" else s["thing2"]
    world.own(hero, present)
    s.say("gift.bring" if turn == "gift.paid" else "gift.bring2")
    world.meet(hero, friend)
    world.give(hero, present, friend)
    s.feel("friend", "glad")
    s.end("proud" if turn == "gift.paid" else "calm")


def rescue(s: Story) -> None:
    """A small animal is in trouble, and a tool must be fetched."""
    world, hero = s.world, s["hero"]
    world.go(s["place"], hero)
    world.note("stuck_where", s["place"], baby=s["baby"])
    s.say("rescue.try")
    s.feel("hero", "afraid")
    s.say("rescue.fetch", tool=s.any("tool"), friend=s.partner())
    friend = s["friend"]
    turn = s.say("rescue.lend", "rescue.join", "rescue.price", chore=s.any("chore"))
    if turn == "rescue.price":
        s.say("rescue.chore")
        world.note("chore", s["chore"], who=hero)
    if turn == "rescue.join":
        world.go(s["place"], friend)
        s.say("rescue.free_both")
    else:
        s.say("rescue.free")
    world.note("tool", s["tool"], baby=s["baby"])
    world.note("lender", friend, tool=s["tool"])
    if s.say("rescue.off", "rescue.thank", thing=s.any("thing"), look=s.any("look")) == "rescue.thank":
        world.own(hero, s["thing"])
    s.end("proud")


def bake(s: Story) -> None:
    """One thing is missing in the kitchen; someone has it."""
    world, hero, friend = s.world, s["hero"], s["friend"]
    s.say("bake.missing", food=s.any("food"))
    world.note("missing", s["food"], dish=s["dish"])
    s.say("bake.ask", place=s.any("place"), other=s.any("other"))
    other = s["other"]
    world.go(s["place"], hero, other)
    turn = s.say("bake.free", "bake.swap", "bake.chore",
                 thing=s.any("thing"), look=s.any("look"), chore=s.any("chore"))
    if turn == "bake.swap":
        s.say("bake.swapped")
        world.own(hero, s["thing"])
        world.give(hero, s["thing"], other)
    elif turn == "bake.chore":
        s.say("bake.chored")
        world.note("chore", s["chore"], who=hero)
    world.note("helper", other, food=s["food"], who=hero)
    s.say("bake.mix")
    luck = s.say("bake.fine", "bake.burnt")
    s.say("bake.serve" if luck == "bake.fine" else "bake.laugh")
    world.meet(hero, friend)
    s.end("proud" if luck == "bake.fine" else "glad")


def journey(s: Story) -> None:
    """Something must be carried to somebody, and the way is blocked."""
    world, hero, friend, thing = s.world, s["hero"], s["friend"], s["thing"]
    world.own(hero, thing)
    world.go(s["place"], friend)
    s.say("journey.hurdle")
    s.feel("hero", "afraid")
    turn = s.say("journey.helper", "journey.alone", helper=s.any("animal"))
    if turn == "journey.helper":
        s.say("journey.guide")
        world.note("guide", s["helper"], who=hero)
    else:
        s.say("journey.dare")
    s.say("journey.arrive")
    world.go(s["place"], hero)
    world.give(hero, thing, friend)
    s.say("journey.reward", thing2=s.any("thing"), look2=s.any("look"))
    world.own(friend, s["thing2"])
    world.give(friend, s["thing2"], hero)
    s.end("glad" if turn == "journey.helper" else "proud")


def quarrel(s: Story) -> None:
    """Two find one thing and both want it."""
    world, hero, friend, thing = s.world, s["hero"], s["friend"], s["thing"]
    world.go(s["place"], hero, friend)
    world.lie(thing)
    world.note("quarrel", thing, who=hero, whom=friend)
    s.say("quarrel.mine")
    s.feel("hero", "cross")
    turn = s.say("quarrel.break", "quarrel.snatch", thief=s.any("animal"), part=s.any("part"))
    s.feel("hero", "sorry")
    s.say("quarrel.sorry")
    if turn == "quarrel.break":
        s.say("quarrel.mend", glue=s.any("glue"))
        world.note("mended", s["glue"], item=thing)
    else:
        s.say("quarrel.catch", place2=s.any("place"))
        world.go(s["place2"], hero, friend)
        world.note("thief", s["thief"], item=thing)
    if s.say("quarrel.share", "quarrel.yield") == "quarrel.yield":
        world.take(friend, thing)
        s.end("calm")
    else:
        s.end("glad")


def night(s: Story) -> None:
    """A noise in the dark, and what it really was."""
    world, hero = s.world, s["hero"]
    s.say("night.guess", monster=s.any("monster"))
    world.note("feared", s["monster"], who=hero)
    s.feel("hero", "afraid")
    s.say("night.wake", friend=s.partner())
    s.say("night.go", tool=s.any("tool"))
    s.say("night.reveal", culprit=s.any("culprit"))
    world.note("culprit", s["culprit"], noise=s["noise"])
    s.say("night.laugh")
    s.end("calm")


def plant(s: Story) -> None:
    """A seed needs time, and a guard."""
    world, hero = s.world, s["hero"]
    world.go(s["place"], hero)
    world.note("planted", s["seed"], who=hero)
    s.say("plant.wait")
    s.feel("hero", "sad")
    s.say("plant.advice", friend=s.partner())
    s.say("plant.pest", pest=s.any("pest"))
    s.say("plant.guard", tool=s.any("tool"))
    world.note("guard", s["tool"], who=hero, pest=s["pest"])
    s.say("plant.grow")
    s.say("plant.share")
    s.end("proud")


def finder(s: Story) -> None:
    """A find has an owner; will it be given back?"""
    world, hero, thing = s.world, s["hero"], s["thing"]
    world.go(s["place"], hero)
    world.lie(thing)
    world.find(hero, thing, s["place"])
    s.say("finder.keep")
    s.say("finder.owner", friend=s.partner())
    friend = s["friend"]
    world.note("owner", friend, item=thing)
    s.say("finder.search")
    turn = s.say("finder.return", "finder.night", "finder.silent")
    if turn == "finder.silent":
        s.say("finder.alone")
        s.end("sorry")
        return
    if turn == "finder.night":
        s.feel("hero", "sorry")
        s.say("finder.confess")
    world.meet(hero, friend)
    world.give(hero, thing, friend)
    s.feel("friend", "glad")
    s.say("finder.reward", game=s.any("game"))
    world.note("game", s["game"], who=hero, whom=friend)
    s.end("calm")


def contest(s: Story) -> None:
    """Winning, losing, or stopping to help."""
    world, hero = s.world, s["hero"]
    world.note("prize", s["prize"], contest=s["contest"])
    s.say("contest.train")
    s.say("contest.rival", friend=s.partner())
    friend = s["friend"]
    s.say("contest.day")
    world.go(s["place"], hero, friend)
    turn = s.say("contest.win", "contest.lose", "contest.help")
    if turn == "contest.win":
        world.note("winner", hero, contest=s["contest"])
        s.say("contest.share")
        s.end("proud")
    elif turn == "contest.lose":
        world.note("winner", friend, contest=s["contest"])
        s.feel("hero", "sad")
        s.say("contest.hand")
        s.end("calm")
    else:
        s.say("contest.last")
        s.end("glad")


def trade(s: Story) -> None:
    """To get one thing, get another first."""
    world, hero, friend, thing = s.world, s["hero"], s["friend"], s["thing"]
    world.own(friend, thing)
    s.say("trade.price", thing2=s.any("thing"))
    world.note("price", s["thing2"], who=friend, item=thing)
    s.say("trade.other", other=s.any("other"), place=s.any("place"))
    other = s["other"]
    world.own(other, s["thing2"])
    s.say("trade.offer", thing3=s.any("thing"), look3=s.any("look"))
    world.go(s["place"], hero, other)
    world.own(hero, s["thing3"])
    s.say("trade.first")
    world.give(hero, s["thing3"], other)
    world.give(other, s["thing2"], hero)
    s.say("trade.second")
    world.meet(hero, friend)
    world.give(hero, s["thing2"], friend)
    world.give(friend, thing, hero)
    s.end("glad")


def outing(s: Story) -> None:
    """The weather has other plans."""
    world, hero, friend = s.world, s["hero"], s["friend"]
    world.note("plan", s["place"], who=hero, whom=friend)
    s.say("outing.pack", dish=s.any("dish"), thing=s.any("thing"), look=s.any("look"))
    world.own(hero, s["thing"])
    world.note("packed", s["dish"], who=hero)
    s.say("outing.weather", weather=s.any("weather"))
    world.note("weather", s["weather"], who=hero, whom=friend)
    s.feel("friend", "sad")
    s.say("outing.shelter", place2=s.any("place"))
    world.go(s["place2"], hero, friend)
    s.say("outing.play", game=s.any("game"))
    world.note("game", s["game"], who=hero, whom=friend)
    s.say("outing.eat")
    s.end("glad")


def hiding(s: Story) -> None:
    """Hide-and-seek, and one who hid too well."""
    world, hero, friend = s.world, s["hero"], s["friend"]
    world.go(s["place"], hero, friend)
    s.say("hiding.count")
    s.say("hiding.first", spot=s.any("spot"))
    s.say("hiding.second", spot3=s.any("spot"))
    s.feel("hero", "afraid")
    turn = s.say("hiding.sound", "hiding.animal", noise=s.any("noise"), helper=s.any("animal"))
    s.say("hiding.found", spot2=s.any("spot"))
    world.note("hidden", s["spot2"], whom=friend)
    s.say("hiding.asleep" if turn == "hiding.sound" else "hiding.joke")
    s.end("calm" if turn == "hiding.sound" else "glad")


def bottle(s: Story) -> None:
    """A message into the unknown, and an answer."""
    world, hero = s.world, s["hero"]
    world.note("wrote", s["message"], who=hero)
    s.say("bottle.throw", place=s.any("place"))
    world.go(s["place"], hero)
    s.say("bottle.wait")
    s.feel("hero", "sad")
    s.say("bottle.found", friend=s.partner(), place2=s.any("place"))
    friend = s["friend"]
    world.go(s["place2"], friend)
    world.note("found_letter", friend, who=hero)
    s.say("bottle.reply", thing=s.any("thing"), look=s.any("look"))
    s.say("bottle.visit")
    world.meet(hero, friend)
    world.own(friend, s["thing"])
    world.give(friend, s["thing"], hero)
    s.say("bottle.game", game=s.any("game"))
    world.note("game", s["game"], who=hero, whom=friend)
    s.end("glad")


def borrowed(s: Story) -> None:
    """What was borrowed is broken; telling is harder than mending."""
    world, hero, friend, thing = s.world, s["hero"], s["friend"], s["thing"]
    world.own(hero, thing)
    world.note("owner", friend, item=thing)
    s.say("borrowed.break", part=s.any("part"))
    world.note("broken", s["part"], item=thing)
    s.feel("hero", "sorry")
    s.say("borrowed.hide")
    s.say("borrowed.come")
    world.meet(hero, friend)
    s.say("borrowed.tell")
    turn = s.say("borrowed.mend", "borrowed.cross", glue=s.any("glue"))
    if turn == "borrowed.cross":
        s.feel("friend", "cross")
        s.say("borrowed.replace", thing2=s.any("thing"), look2=s.any("look"))
        world.own(hero, s["thing2"])
        world.give(hero, s["thing2"], friend)
    else:
        world.note("mended", s["glue"], item=thing)
    world.give(hero, thing, friend)
    s.end("calm")


PLOTS: dict[str, Callable[[Story], None]] = {
    plot.__name__: plot
    for plot in (lost, gift, rescue, bake, journey, quarrel, night, plant, finder, contest, trade, outing, hiding,
                 bottle, borrowed)
}


def tell(teller: Teller) -> Story:
    """Tell one whole story: somebody, a wish or a trouble, and what comes of it."""
    story = Story(teller)
    story.say("open", hero=story.any("hero"))
    story.say("detail")
    # All roles that a first sentence may introduce; each names those of its own plot.
    wishes = [f"{plot}.wish" for plot in PLOTS if f"{plot}.wish" in teller.language.beats]
    roles = {"thing": "thing", "look": "look", "place": "place", "baby": "baby", "dish": "dish",
             "occasion": "occasion", "seed": "seed", "contest": "contest", "prize": "prize", "noise": "noise",
             "message": "message"}
    wish = story.say(*wishes, friend=story.partner(), **{role: story.any(pool) for role, pool in roles.items()})
    story.plot = wish.split(".")[0]
    PLOTS[story.plot](story)
    return story
