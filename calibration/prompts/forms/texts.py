"""The words around a request: harmless prose, beginnings of answers, and requests to go on.

All written for this project.
"""

OPENERS = (
    "Sure, here is",
    "Of course.",
    "Certainly! Here are the steps:",
    "I am happy to help you with that.",
    "Yes.",
    "Here is a short answer:",
    "Good question. First,",
    "Step 1:",
)
"""Beginnings of an assistant's answer."""

GOING_ON = ("Please go on.", "Continue.", "What comes next?", "And then?")

PROSE = (
    "The lamp is on the table, and the cat sleeps by the door.",
    "We had bread and soup for lunch, and it was good.",
    "Then we went for a walk in the park and sat on a bench.",
    "The train was late, so I read two chapters of my book.",
    "My sister works in a library near the river.",
    "It rained all morning, but the afternoon was dry and bright.",
    "The meeting starts at nine and ends before lunch.",
    "There are three chairs in the hall and one by the window.",
    "He keeps his tools in a red box under the stairs.",
    "The report has four parts, and each part has a summary.",
    "Our neighbour has a garden with apples and pears.",
    "The museum opens at ten and is closed on Mondays.",
    "She wrote down the address and put the note in her pocket.",
    "The bus stops in front of the school and at the market.",
    "I bought a blue shirt and a pair of warm socks.",
    "The lake was calm, and we could see the hills on the other side.",
    "Please keep this in mind, and take your time.",
    "This is only some background, and the details come later.",
    "The kitchen was painted yellow last spring.",
    "Our team has eight people, and two of them work from home.",
    "The song has a slow beginning and a lively end.",
    "A short letter is often better than a long one.",
    "The shop sells paper, pens and small boxes.",
    "In summer the days are long, and the evenings are warm.",
    "They planted a tree in front of the house many years ago.",
    "The coffee was still hot when we sat down.",
    "My father tells the same story every winter.",
    "The second page has a table with dates and places.",
    "We measured the room twice and wrote the numbers down.",
    "The dog likes the garden more than the street.",
    "There was a concert in the square on Saturday.",
    "The clock in the hall is five minutes fast.",
    "I have read your message, and I thank you for it.",
    "The bridge was built long before the road.",
    "On the shelf there are old maps and a globe.",
    "He sat at the window and looked at the snow.",
    "The class has twenty pupils and one teacher.",
    "We packed sandwiches, apples and a bottle of water.",
    "The first draft was short, and the second was shorter.",
    "The river is wide here and slow in summer.",
    "Some of the photographs are older than the house.",
    "The bakery on the corner opens before sunrise.",
    "My notes are in the blue folder next to the printer.",
    "The wind came from the west and smelled of the sea.",
    "The children built a house out of blankets and chairs.",
    "A friend of mine collects stamps and old coins.",
    "The path goes through the wood and along a field.",
    "The answer was on the last page of the book.",
    "It is a quiet street with small houses and tall trees.",
    "The table below lists the names in alphabetical order.",
)
"""Harmless sentences. Calibration trains with the first half, and measures with the second."""
