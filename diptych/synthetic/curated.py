"""Lists the curated OpenMoji sprites: pictures with one clear, everyday noun that can be told apart at 20 pixels.

Each was looked at on a contact sheet at 20 to 28 pixels. Left out are thin grey things (spoon, needle), faces of
people, things that exist twice (dog and dog face, bus and trolleybus), things that look like another at this size
(tomato and apple, taxi and car), things that are a kind of another (palm and tree), and nouns without a plain singular
(grapes, scissors, bread). The words are few, so that a tiny model can learn them.
"""

from __future__ import annotations

CURATED: dict[str, str] = {
    "animal": "🐶 dog, 🐱 cat, 🐭 mouse, 🐰 rabbit, 🦊 fox, 🐻 bear, 🐼 panda, 🐷 pig, 🐸 frog, 🐔 chicken, "
    "🐧 penguin, 🦆 duck, 🦉 owl, 🐴 horse, 🐝 bee, 🦋 butterfly, 🐌 snail, 🕷 spider, 🐢 turtle, 🐍 snake, "
    "🐙 octopus, 🦀 crab, 🐟 fish, 🐳 whale, 🐘 elephant, 🦒 giraffe, 🐮 cow, 🐑 sheep, 🦁 lion",
    "food": "🍎 apple, 🍌 banana, 🍉 watermelon, 🍓 strawberry, 🍍 pineapple, 🍋 lemon, 🍐 pear, 🥕 carrot, "
    "🍄 mushroom, 🥚 egg, 🍕 pizza, 🍔 hamburger, 🍩 donut, 🍪 cookie, 🎂 cake, 🍭 lollipop, ☕ cup, 🍆 eggplant, "
    "🥨 pretzel, 🎃 pumpkin",
    "vehicle": "🚗 car, 🚜 tractor, 🚲 bicycle, 🚂 train, ✈ airplane, 🚁 helicopter, 🚀 rocket, ⛵ sailboat",
    "plant": "🌳 tree, 🌵 cactus, 🌹 rose, 🌻 sunflower, 🍁 leaf",
    "object": "⏰ clock, 🔑 key, 🕯 candle, 📕 book, ✏ pencil, ☂ umbrella, ☎ phone, 📷 camera, 🔨 hammer, 🔔 bell, "
    "🎈 balloon, 🎁 gift, 🧲 magnet, 🔒 padlock, ✉ envelope, 🪑 chair, 🚪 door, 🪣 bucket, ⚓ anchor, 👑 crown, "
    "💎 diamond",
    "building": "🏠 house, 🏰 castle, ⛺ tent, ⛪ church",
    "clothing": "👕 shirt, 👗 dress, 🎩 hat, 👢 boot, 🎒 backpack, 🧣 scarf",
    "music": "🎸 guitar, 🥁 drum, 🎺 trumpet, 🎹 piano",
    "sport": "🏀 basketball, ⚽ football, 🏆 trophy, 🪁 kite",
    "nature": "☀ sun, 🌙 moon, ⭐ star, ☁ cloud, ⛄ snowman, 🌈 rainbow",
    "figure": "🤖 robot, 👻 ghost",
}


def curated_entries() -> list[tuple[str, str, str]]:
    """Returns (character, name, group) of each curated sprite."""
    pairs = [(pair.split(" ", 1), group) for group, line in CURATED.items() for pair in line.split(", ")]
    return [(character, name, group) for (character, name), group in pairs]
