"""Make the intents: short messages to a bank, a shop and an assistant, each with what its writer wants.

    python data/intents/make_data.py [folder]

writes train.jsonl and test.jsonl into the folder (else beside this file), the same bytes every time.  Test messages are
made from phrasings that train never shows.  Some wishes are told apart by a word or two (a card that was lost, a card
that is late, a card that is refused; an order that is late).  Train also holds what real files hold: rows twice, one
text with two labels, labels that nobody knows, empty texts, wrong decodings, broken lines.
"""

# ruff: noqa: S311 (seeded random numbers make the same files each time; nothing is secret here)

import json
import random
import sys
from pathlib import Path

TRAIN_ROWS, TEST_ROWS = 50, 17
"""Messages for each intent."""

SLOTS = {
    "amount": [
        "20 euros",
        "35 dollars",
        "50 pounds",
        "75 euros",
        "120 dollars",
        "200 euros",
        "480 pounds",
        "1,500 euros",
    ],
    "person": ["Anna", "my sister", "Tom", "my landlord", "Mei", "Mr Okafor", "my flatmate", "Lucia"],
    "account": ["savings account", "current account", "joint account", "main account"],
    "card": ["debit card", "credit card", "bank card", "travel card"],
    "place": ["supermarket", "petrol station", "bakery", "cinema", "hotel", "train station", "chemist"],
    "currency": ["yen", "Swiss francs", "zloty", "Danish kroner", "rupees", "pesos", "pounds"],
    "item": ["jacket", "kettle", "headphones", "running shoes", "desk lamp", "blue jumper", "keyboard", "backpack"],
    "day": ["Monday", "Tuesday", "Thursday", "Friday", "Saturday", "Sunday"],
    "time": ["at seven", "at noon", "at half past nine", "in an hour", "tonight at eight", "tomorrow morning"],
    "errand": ["call the dentist", "water the plants", "pay the rent", "take out the bins", "buy milk", "feed the cat"],
    "branch": ["city branch", "shop in Leeds", "branch at the harbour", "store in the old town", "airport branch"],
    "service": ["music plan", "premium membership", "video subscription", "news subscription", "monthly box"],
    "street": ["12 Mill Lane", "4 Station Road", "the new flat in Park Street", "88 Hill View", "Elm Court 7"],
}
OPENINGS = ["", "", "", "Hi, ", "Hello, ", "Good morning, ", "Excuse me, "]
ENDINGS = ["", "", "", " Thanks.", " Thank you!", " Please help."]

PHRASINGS = {
    "check_balance": (
        [
            "how much money is on my {account}?",
            "what is the balance of my {account}?",
            "show me the balance of my {account}.",
            "can you tell me how much is left on my {account}?",
            "I would like to see what my {account} holds.",
            "do I still have more than {amount} on my {account}?",
            "balance of the {account}, please.",
        ],
        [
            "am I in the red on my {account}?",
            "could I afford {amount} with what is on my {account}?",
            "what sum does my {account} show today?",
            "I want to know the state of my {account}.",
        ],
    ),
    "transfer_money": (
        [
            "send {amount} to {person}.",
            "I want to transfer {amount} to {person}.",
            "please move {amount} from my {account} to {person}.",
            "make a payment of {amount} to {person}.",
            "transfer {amount} to {person} on {day}.",
            "can you send {person} {amount}?",
        ],
        [
            "I owe {person} {amount}, settle that for me.",
            "let {person} have {amount} from my {account}.",
            "wire {amount} over to {person}.",
            "pay {person} back the {amount}.",
        ],
    ),
    "lost_card": (
        [
            "I lost my {card} at the {place}.",
            "my {card} was stolen on {day}.",
            "I cannot find my {card} anywhere, block it.",
            "please block my {card}, it is gone.",
            "somebody took my {card} at the {place}.",
            "my {card} is missing since {day}.",
        ],
        [
            "I must have left my {card} at the {place}, nobody has seen it.",
            "freeze the {card}, a thief has it.",
            "my purse with the {card} in it disappeared on {day}.",
            "the {card} fell out of my pocket near the {place} and I want it stopped.",
        ],
    ),
    "card_refused": (
        [
            "my {card} was declined at the {place}.",
            "the {place} would not take my {card}.",
            "why was my payment of {amount} refused?",
            "my {card} does not work at the {place}.",
            "the machine at the {place} rejected my {card}.",
            "I could not pay {amount} with my {card} on {day}.",
        ],
        [
            "the till at the {place} said no to my {card}.",
            "I tried twice to pay {amount} at the {place} and it failed each time.",
            "what is wrong with my {card}? It was turned down on {day}.",
            "paying with the {card} keeps failing.",
        ],
    ),
    "card_delivery": (
        [
            "when will my new {card} arrive?",
            "my new {card} has not come yet.",
            "I ordered a {card} on {day}, where is it?",
            "how long does it take until I get my {card}?",
            "I am still waiting for my {card}.",
            "has my {card} been sent out?",
        ],
        [
            "the replacement {card} is late.",
            "it is {day} and there is no {card} in my letter box.",
            "which day can I expect the {card} you promised?",
            "did you post the {card} I asked for?",
        ],
    ),
    "exchange_rate": (
        [
            "what is the exchange rate for {currency}?",
            "how many {currency} do I get for {amount}?",
            "what is {amount} in {currency}?",
            "tell me today's rate for {currency}.",
            "convert {amount} to {currency}.",
            "how does the rate for {currency} look?",
        ],
        [
            "if I change {amount} into {currency}, what comes out?",
            "is this a good week to buy {currency}?",
            "how much are {currency} worth at the moment?",
            "what would {amount} be when I travel and need {currency}?",
        ],
    ),
    "track_order": (
        [
            "where is my {item}?",
            "has my order with the {item} been shipped?",
            "track my order of the {item}.",
            "when will the {item} be delivered?",
            "I ordered a {item} on {day} and it has not arrived.",
            "what is the status of my order of the {item}?",
        ],
        [
            "the parcel with the {item} is late.",
            "it is {day} and there is still no {item} at my door.",
            "did the courier pick up the {item} yet?",
            "which day can I expect the {item}?",
        ],
    ),
    "return_item": (
        [
            "I want to send back the {item}.",
            "the {item} does not fit, how do I return it?",
            "can I return the {item} that I bought on {day}?",
            "I would like a refund for the {item}.",
            "the {item} arrived broken, I want my money back.",
            "how do I get a return label for the {item}?",
        ],
        [
            "the {item} is not what I expected, take it back.",
            "I changed my mind about the {item} and want the {amount} back.",
            "may I swap the {item} for another one?",
            "this {item} stopped working after a day, what can I do with it?",
        ],
    ),
    "change_address": (
        [
            "I moved, my new address is {street}.",
            "please change my address to {street}.",
            "how do I update my address? I live at {street} now.",
            "from {day} on I live at {street}.",
            "set my delivery address to {street}.",
            "my address is wrong, it should be {street}.",
        ],
        [
            "we are moving to {street} on {day}.",
            "post should go to {street} from now on.",
            "you still have my old home on file, I am at {street}.",
            "send everything to {street} after {day}.",
        ],
    ),
    "cancel_subscription": (
        [
            "I want to cancel my {service}.",
            "please stop the {service}.",
            "how do I end the {service}?",
            "cancel the {service} from {day} on.",
            "I no longer need the {service}.",
            "do not renew my {service}.",
        ],
        [
            "I am tired of paying {amount} for the {service}.",
            "get me out of the {service}.",
            "I would rather live without the {service} from {day} on.",
            "quit my {service} before {amount} are taken again.",
        ],
    ),
    "opening_hours": (
        [
            "when does the {branch} open?",
            "is the {branch} open on {day}?",
            "until when is the {branch} open on {day}?",
            "what are the opening hours of the {branch}?",
            "at what time does the {branch} close?",
            "does the {branch} open on {day}?",
        ],
        [
            "can I still come to the {branch} late on {day}?",
            "I would like to visit the {branch} on {day}, is somebody there?",
            "how early may I walk into the {branch}?",
            "is the {branch} shut on {day}?",
        ],
    ),
    "set_reminder": (
        [
            "remind me to {errand} {time}.",
            "set a reminder to {errand} on {day}.",
            "I must not forget to {errand} {time}.",
            "please remind me on {day} to {errand}.",
            "wake me up {time}, I have to {errand}.",
            "make a note that I have to {errand} {time}.",
        ],
        [
            "tell me {time} that it is time to {errand}.",
            "do not let me forget to {errand} on {day}.",
            "give me a nudge {time} to {errand}.",
            "I need to {errand} on {day}, ping me then.",
        ],
    ),
}

Row = dict[str, str]


def messages(intent: str, phrasings: list[str], count: int, chance: random.Random) -> list[Row]:
    """`count` different messages, the phrasings in turn."""
    made: dict[str, None] = {}
    turn = 0
    while len(made) < count:
        filled = phrasings[turn % len(phrasings)].format_map({name: chance.choice(SLOTS[name]) for name in SLOTS})
        opening = chance.choice(OPENINGS)
        text = opening + (filled if opening else filled[0].upper() + filled[1:]) + chance.choice(ENDINGS)
        made.setdefault(text)
        turn += 1
    return [{"text": text, "label": intent} for text in made]


def dirt(rows: list[Row], chance: random.Random) -> list[Row | str]:
    """What clean and collect must find, and one thing that clean repairs."""
    twice = [dict(row) for row in chance.sample(rows, 8)]
    two_labels = [row | {"label": "set_reminder"} for row in chance.sample(rows[:200], 4)]
    misspelt = [row | {"label": row["label"].replace("_", " ").title()} for row in chance.sample(rows, 5)]
    broken = [row | {"text": row["text"][:9] + "\ufffd" + row["text"][10:]} for row in chance.sample(rows, 4)]
    empty = [{"text": " ", "label": row["label"]} for row in chance.sample(rows, 4)]
    wrongly_decoded = [
        {"text": "Where\u00e2\u20ac\u2122s my parcel with the caf\u00c3\u00a9 au lait bowls?", "label": "track_order"},
        {"text": "Send 40 euros to Ren\u00c3\u00a9e, it\u00e2\u20ac\u2122s for the rent.", "label": "transfer_money"},
    ]
    lines = ['{"text": "How much is left on my', '{"text": "Is the shop open today?"}', "null"]
    return [*twice, *two_labels, *misspelt, *broken, *empty, *wrongly_decoded, *lines]


def main(folder: Path) -> None:
    """Write both files."""
    chance = random.Random(20261122)
    train = [row for name, (shown, _) in PHRASINGS.items() for row in messages(name, shown, TRAIN_ROWS, chance)]
    test = [row for name, (_, held_out) in PHRASINGS.items() for row in messages(name, held_out, TEST_ROWS, chance)]
    for name, rows in (("train", [*train, *dirt(train, chance)]), ("test", test)):
        chance.shuffle(rows)
        lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
