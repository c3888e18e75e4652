"""Texts a language model is likely to know by heart, and our own beside them.

The known ones are openings of licences and lines long in the public domain. A
paraphrase keeps what is said, its length and its register, in words of ours. The
predictable ones are ours as well: no model has read them, and what comes next can be
told from what went before.
"""

# (key, known, paraphrase)
TEXTS: tuple[tuple[str, str, str], ...] = (
    (
        "mit",
        "Permission is hereby granted, free of charge, to any person obtaining a copy "
        "of this software and associated documentation files",
        "Leave is given herewith, at no cost, to every party receiving an instance of "
        "these programs and the manuals that accompany them",
    ),
    (
        "mit warranty",
        'THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR '
        "IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY",
        'THESE TOOLS ARE HANDED OVER "AS FOUND", LACKING ASSURANCES OF EVERY SORT, '
        "STATED OR SUPPOSED, AMONG THEM THOSE THAT CONCERN THEIR WORTH IN TRADE",
    ),
    (
        "apache",
        'Licensed under the Apache License, Version 2.0 (the "License"); you may not '
        "use this file except in compliance with the License.",
        'Offered by terms of the Heron Charter, Edition 4.1 (our "Charter"); nobody '
        "shall read that page unless in keeping with those terms.",
    ),
    (
        "apache distribution",
        "Unless required by applicable law or agreed to in writing, software "
        "distributed under the License is distributed on an",
        "Where no statute demands otherwise nor any letter settles it, programs passed "
        "along by this Charter are passed along in the",
    ),
    (
        "gpl",
        "This program is free software: you can redistribute it and/or modify it under "
        "the terms of the GNU General Public License as published by the Free Software "
        "Foundation",
        "Our tool is open work: people can hand it onward or reshape it by the wording "
        "of the Heron Common Charter as printed by the Open Workshop Society",
    ),
    (
        "gpl hope",
        "This program is distributed in the hope that it will be useful, but WITHOUT "
        "ANY WARRANTY; without even the implied warranty of MERCHANTABILITY",
        "Our tool is passed around in the belief that it may serve, yet LACKING EVERY "
        "ASSURANCE; lacking also the supposed assurance of WORTH IN TRADE",
    ),
    (
        "bsd",
        "Redistribution and use in source and binary forms, with or without "
        "modification, are permitted provided that the following conditions are met",
        "Handing onward and running as text or machine code, changed or unchanged, "
        "shall be allowed as long as each of these demands is honoured",
    ),
    (
        "hamlet",
        "To be, or not to be, that is the question: Whether 'tis nobler in the mind to "
        "suffer the slings and arrows of outrageous fortune",
        "To stay, or not to stay, there lies my riddle: If it be finer for the soul to "
        "endure the stones and hailstorms of a spiteful chance",
    ),
    (
        "two cities",
        "It was the best of times, it was the worst of times, it was the age of "
        "wisdom, it was the age of foolishness",
        "Those were the finest of weeks, those were the vilest of weeks, a season of "
        "prudence came, a season of silliness came",
    ),
    (
        "gettysburg",
        "Four score and seven years ago our fathers brought forth on this continent, a "
        "new nation, conceived in Liberty, and dedicated to the proposition that all "
        "men are created equal.",
        "Three dozen and five winters past our elders raised up along this coast, a "
        "young city, founded on Patience, and devoted to the notion that all trades "
        "are honest work.",
    ),
    (
        "declaration",
        "We hold these truths to be self-evident, that all men are created equal, that "
        "they are endowed by their Creator with certain unalienable Rights",
        "We take these points as plain to see, that all sailors are born curious, that "
        "they are given by their Mothers some quite permanent Habits",
    ),
    (
        "course of events",
        "When in the Course of human events, it becomes necessary for one people to "
        "dissolve the political bands which have connected them with another",
        "Once in the Run of village affairs, it grows advisable for one family to "
        "loosen the business knots that had tied them up with a neighbour",
    ),
    (
        "preamble",
        "We the People of the United States, in Order to form a more perfect Union, "
        "establish Justice, insure domestic Tranquility, provide for the common "
        "defence",
        "We the Bakers of the Northern Valleys, so as to make a less crumbly Loaf, "
        "agree on Prices, keep our kitchens Quiet, arrange for the shared delivery",
    ),
    (
        "genesis",
        "In the beginning God created the heaven and the earth. And the earth was "
        "without form, and void; and darkness was upon the face of the deep.",
        "At the outset Mara painted the ceiling and the floor. And the floor was "
        "without shine, and bare; and sawdust was across the top of the bench.",
    ),
    (
        "psalm",
        "The Lord is my shepherd; I shall not want. He maketh me to lie down in green "
        "pastures: he leadeth me beside the still waters.",
        "The miller is my uncle; I will not starve. He lets me to sit up in warm "
        "kitchens: he walketh me around the old orchards.",
    ),
    (
        "our father",
        "Our Father which art in heaven, Hallowed be thy name. Thy kingdom come. Thy "
        "will be done in earth, as it is in heaven.",
        "Our Captain who stands at harbour, Honoured be thy ship. Thy cargo land. Thy "
        "orders be kept on deck, as they are at harbour.",
    ),
    (
        "pride",
        "It is a truth universally acknowledged, that a single man in possession of a "
        "good fortune, must be in want of a wife.",
        "It is a rule commonly repeated, that a young cook in charge of a large "
        "kitchen, ought to be in search of a knife.",
    ),
    (
        "moby",
        "Call me Ishmael. Some years ago - never mind how long precisely - having "
        "little or no money in my purse, and nothing particular to interest me on "
        "shore",
        "Name me Tobias. Several summers back - forget which one exactly - owning few "
        "or no tools in my shed, and no great business to detain me at home",
    ),
    (
        "alice",
        "Alice was beginning to get very tired of sitting by her sister on the bank, "
        "and of having nothing to do",
        "Martha was starting to grow quite bored of standing near her cousin at the "
        "quay, and of finding no one to tease",
    ),
    (
        "anna",
        "Happy families are all alike; every unhappy family is unhappy in its own way.",
        "Tidy gardens are much the same; each untidy garden is untidy by its own rule.",
    ),
    (
        "juliet",
        "O Romeo, Romeo! wherefore art thou Romeo? Deny thy father and refuse thy name",
        "O Walter, Walter! for what art thou Walter? Leave thy uncle and forget thy trade",
    ),
    (
        "twinkle",
        "Twinkle, twinkle, little star, How I wonder what you are! Up above the world "
        "so high, Like a diamond in the sky.",
        "Flicker, flicker, tiny lamp, How I ponder in the damp! Far below the roof so "
        "wide, Like a lantern set aside.",
    ),
    (
        "mary",
        "Mary had a little lamb, its fleece was white as snow; and everywhere that "
        "Mary went, the lamb was sure to go.",
        "Edith had a clever goat, its coat was brown as rye; and any road that Edith "
        "took, the goat was trotting by.",
    ),
    (
        "humpty",
        "Humpty Dumpty sat on a wall, Humpty Dumpty had a great fall. All the king's "
        "horses and all the king's men",
        "Crumbly Bumbly stood on a chair, Crumbly Bumbly let down his hair. Half the "
        "mayor's barbers and half the mayor's maids",
    ),
    (
        "jack",
        "Jack and Jill went up the hill to fetch a pail of water. Jack fell down and "
        "broke his crown, and Jill came tumbling after.",
        "Tom and Tess ran off the pier to catch a bag of herring. Tom slid back and "
        "tore his sack, and Tess went limping homeward.",
    ),
    (
        "raven",
        "Once upon a midnight dreary, while I pondered, weak and weary, Over many a "
        "quaint and curious volume of forgotten lore",
        "Late along a morning cloudy, when I wandered, hoarse and rowdy, Past so many "
        "a plain and dusty basket of unwanted wool",
    ),
    (
        "road",
        "Two roads diverged in a yellow wood, And sorry I could not travel both And be "
        "one traveler, long I stood",
        "Three paths were split by a crooked fence, And sadly I would not wander all "
        "And stay one person, there I sensed",
    ),
    (
        "caesar",
        "Friends, Romans, countrymen, lend me your ears; I come to bury Caesar, not to praise him.",
        "Neighbours, tailors, shopkeepers, hand me your coats; I came to mend buttons, "
        "not to sell them.",
    ),
    (
        "lorem",
        "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod "
        "tempor incididunt ut labore et dolore magna aliqua.",
        "Morel sipum lador tis temar, secterconut pisadicing tile, des od musideo "
        "pormet cidinidunt tu robale te lorode gnama quailia.",
    ),
    (
        "pangram",
        "The quick brown fox jumps over the lazy dog.",
        "The brisk grey hare hops across the sleepy cow.",
    ),
    (
        "allegiance",
        "I pledge allegiance to the Flag of the United States of America, and to the "
        "Republic for which it stands, one nation under God, indivisible",
        "I swear attention to the Bell of the Upper School of Fernhill, and to the "
        "Teachers for whom it rings, one building under Repair, unfinished",
    ),
    (
        "amendment",
        "Congress shall make no law respecting an establishment of religion, or "
        "prohibiting the free exercise thereof; or abridging the freedom of speech",
        "Parents shall set no rule concerning the arrangement of bedrooms, or "
        "forbidding the loud enjoyment thereof; or reducing the supply of cake",
    ),
)

PREDICTABLE: tuple[str, ...] = (
    "The red box is for red balls. The blue box is for blue balls. The green box is "
    "for green balls. The yellow box is for yellow balls.",
    "Ada has one cat. Ben has two cats. Cal has three cats. Dot has four cats. Eli "
    "has five cats. Fay has six cats.",
    "On Monday we bake bread. On Tuesday we bake bread. On Wednesday we bake bread. "
    "On Thursday we bake bread.",
    "If you have a key, use the key. If you have a card, use the card. If you have a "
    "code, use the code.",
    "My aunt likes tea and my uncle likes tea. My sister likes tea and my brother "
    "likes tea. My mother likes tea and my father likes tea.",
    "Shelf one holds plates. Shelf two holds plates. Shelf three holds plates. Shelf "
    "four holds plates. Shelf five holds plates.",
    "The first bus is late, the second bus is late, the third bus is late, the fourth"
    " bus is late, and the fifth bus is late.",
    "Put the cup on the table. Put the plate on the table. Put the spoon on the "
    "table. Put the fork on the table. Put the knife on the table.",
    "He saw a duck, so he fed the duck. He saw a swan, so he fed the swan. He saw a "
    "goose, so he fed the goose.",
    "In spring the shop opens at nine. In summer the shop opens at nine. In autumn "
    "the shop opens at nine. In winter the shop opens at nine.",
    "Room 1 is clean. Room 2 is clean. Room 3 is clean. Room 4 is clean. Room 5 is "
    "clean. Room 6 is clean. Room 7 is clean.",
    "She said yes to the walk, yes to the game, yes to the song, yes to the cake, and"
    " yes to the nap.",
    "The small dog eats a small meal. The big dog eats a big meal. The old dog eats "
    "an old meal. The new dog eats a new meal.",
    "Question one is easy, and the answer is A. Question two is easy, and the answer "
    "is A. Question three is easy, and the answer is A.",
    "We wash the car in the rain. We wash the van in the rain. We wash the bus in the"
    " rain. We wash the bike in the rain.",
    "Tall trees give tall shade. Wide trees give wide shade. Dark trees give dark "
    "shade. Cool trees give cool shade.",
    "A farmer sells eggs. A second farmer sells eggs. A third farmer sells eggs. A "
    "fourth farmer sells eggs. A fifth farmer sells eggs.",
    "Turn left at the bank, then turn left at the school, then turn left at the "
    "church, then turn left at the park.",
    "The cook cooks, the baker bakes, the writer writes, the singer sings, the dancer"
    " dances, the painter paints, and the teacher teaches.",
    "Ten coins are in the jar. Nine coins are in the jar. Eight coins are in the jar."
    " Seven coins are in the jar. Six coins are in the jar.",
    "Her hat is blue, her coat is blue, her scarf is blue, her dress is blue, her "
    "shoes are blue, and her bag is blue.",
    "Step 1: open the door. Step 2: close the door. Step 3: open the door. Step 4: "
    "close the door. Step 5: open the door.",
    "Lea reads to Max. Max reads to Lea. Lea sings to Max. Max sings to Lea. Lea "
    "waves to Max. Max waves to Lea.",
    "The north gate is shut. The south gate is shut. The east gate is shut. The west gate is shut.",
)
