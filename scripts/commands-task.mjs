// Writes the demo task: a spoken request to a home or phone assistant becomes a structured call.
//
//   node scripts/commands-task.mjs [out]        default: data/commands
//
// Eight calls, 10–12 phrasings each, slot values composed from the word lists below. Values are
// copied from the request letter for letter. The same seed writes the same files. Every held-out
// request has a slot value that occurs nowhere in the training requests; a part of the words is
// kept back altogether: in a third of the held-out requests or more, a value holds such a word.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";

const SEED = 20_260;
const TRAIN = 4800;
const HELDOUT = 300;
const LONGEST = 56; // characters of a completion: about 25 tokens of a small vocabulary
const KEPT_BACK = 0.08; // share of each open word list that only held-out requests use

const out = process.argv[2] ?? "data/commands";

/** mulberry32: uniform in [0, 1). */
function rng(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const random = rng(SEED);
const below = (n) => Math.floor(random() * n);
const pick = (list) => list[below(list.length)];
const shuffle = (list) => {
  const copy = [...list];
  for (let i = copy.length - 1; i > 0; i--) {
    const j = below(i + 1);
    [copy[i], copy[j]] = [copy[j], copy[i]];
  }
  return copy;
};

const split = (text) =>
  text
    .split(/[,\n]/)
    .map((word) => word.trim())
    .filter(Boolean);

/** An open list: the words of training requests, and those with the kept-back words added. */
function open(text) {
  const words = shuffle(split(text));
  const kept = Math.max(1, Math.round(words.length * KEPT_BACK));
  return { train: words.slice(kept), heldout: words };
}

/** A closed list: the same words everywhere. */
const closed = (text) => {
  const words = split(text);
  return { train: words, heldout: words };
};

const LISTS = {
  first:
    open(`Martha, Henry, Alice, Edward, Clara, Thomas, Lucy, George, Emma, Arthur, Jane, Walter, Mary,
    Robert, Anne, Charles, Ellen, William, Grace, Oliver, Rose, Frederick, Helen, Hugh, Laura, Philip, Ruth,
    Samuel, Nora, Daniel, Kate, Peter, Agnes, Simon, Sarah, Joseph, Julia, Stephen, Rachel, Andrew, Fanny,
    Francis, Harriet, Richard, Dora, Michael, Edith, James, Susan, Albert, Polly, David, Bertha, John,
    Sophia, Harry, Charlotte, Jack, Elizabeth, Tom, Margaret, Frank, Amelia, Ralph, Caroline, Edmund, Maria,
    Jacob, Lydia, Nicholas, Flora, Adam, Marian, Ned, Rebecca, Luke, Esther, Mark, Isabella, Matthew, Amy,
    Paul, Dorothy, Martin, Anna, Ben, Fred, Will, Louisa, Roger, Phoebe, Stella, Sam, Betty, Gilbert`),
  last: open(`Harper, Turner, Bennett, Weston, Carter, Hale, Marsh, Brooks, Fletcher, Gray, Holmes, Taylor,
    Palmer, Barton, Clark, Collins, Stone, Wood, Miller, Dawson, Fisher, Green, Hunter, Knight, Baker, Lane,
    Mason, Porter, Reed, Shepherd, Thornton, Walker, West, White, Young, Black, Brown, Cole, Cross, Dean,
    Field, Ford, Gardner, Hall, Hill, King, Lamb, Long, May, Moore, Nelson, Page, Parker, Price, Russell,
    Scott, Sharp, Smith, Spencer, Summers, Temple, Wells, Wilson, Winter, Wright, Morgan, Grant, Stewart,
    Campbell, Murray, Warren, Douglas, Ellis, Morris, Johnson, Watson, Adams, Roberts, Phillips, Bell`),
  title: closed("Mr., Mrs., Miss, Doctor, Captain, Aunt, Uncle"),
  adjective:
    open(`old, new, red, blue, green, white, black, brown, little, big, small, long, broken, wooden,
    silver, golden, heavy, empty, rusty, dusty, cracked, round, loose, spare, yellow, iron, grey, plain,
    wet, square, narrow, faded, tall, copper, painted, good, second, other, steel, brass, stone, garden`),
  fix: closed(
    "mend, paint, clean, fix, move, measure, check, sell, polish, cover, replace, repair",
  ),
  thing:
    open(`gate, fence, clock, lamp, window, ladder, chair, table, door, roof, bridge, boat, wagon, stove,
    kettle, mirror, drawer, cupboard, basket, bench, shed, bicycle, tent, piano, violin, curtain, carpet,
    shelf, trunk, pump, chimney, stairs, wheel, barrel, saddle, bell, cradle, desk, box, bucket, cage,
    sign, rope, hammer, umbrella, coat, boots, watch, spade, sail, anchor, lantern, plough, pipe, screen,
    wall, post, pan, tank, hinge, handle, lock, mat, fountain, sofa, stool, tray, vase, oven, gutter`),
  grow: closed("water, plant, cut, pick, tie up, look at, cover, dig up"),
  fresh: open(
    "old, young, small, red, white, dry, yellow, big, new, tall, wild, last, early, pink, thick, climbing",
  ),
  plant:
    open(`roses, tulips, apple trees, beans, lilies, ivy, cabbages, onions, violets, cherry tree, herbs,
    potatoes, grapes, carrots, pears, ferns, daisies, corn, orchids, hedge, strawberries, plums, vines, oak,
    mint, peas, sunflowers, willow, pine trees, lettuce, palm, moss, pansies, fig tree, clover, turnips,
    geraniums, holly, laurel, pumpkins, primroses, lavender, currants, melons, chestnut tree, thistles`),
  tend: closed("feed, wash, brush, walk, fetch, count, look after, weigh"),
  coat: open(
    "old, young, black, white, brown, little, big, grey, sick, lame, spotted, new, wild, hungry, fat, golden",
  ),
  animal:
    open(`dog, cat, horse, hens, rabbits, goats, geese, pony, sheep, cows, ducks, parrot, kitten, pigs,
    donkey, calf, lamb, puppy, pigeons, fish, mice, turkey, mare, bees, tortoise, swans, mule, canary, bull,
    terrier, hound, colt, peacock, squirrel, chickens, oxen, ferret, bear, monkey, owl, foxes, spaniel`),
  visit: closed("call, visit, thank, pay, write to, meet, invite, answer, ask, dine with"),
  handle: closed("sign, read, return, find, copy, post, bring, finish, print, send, keep, check"),
  subject:
    open(`school, music, history, science, garden, travel, wedding, birthday, christmas, church, house,
    hotel, railway, farm, language, hospital, college, theatre, business, family, court, army, club, museum,
    summer, police, insurance, newspaper, bank, market, election, tax, horse, cooking, evening, winter`),
  edition: open(
    "old, new, long, short, second, first, other, torn, last, third, large, red, blue, yellow, final, secret",
  ),
  paper:
    open(`letter, book, map, bill, ticket, report, story, photograph, contract, diary, poem, receipt,
    recipe, list, notice, invitation, card, dictionary, speech, essay, drawing, picture, lesson, note, plan,
    cheque, certificate, calendar, papers, parcel, envelope, key, statement, catalogue, order, petition,
    telegram, manuscript, chapter, article, programme, pamphlet, album, agreement, application, form`),
  time: closed(`6 am, 7 am, 8 am, 9 am, 10 am, 1 pm, 2 pm, 3 pm, 4 pm, 5 pm, 6 pm, 7 pm, 8 pm, 9 pm, noon,
    midnight, sunrise, sunset, half past six, half past nine, half past two, half past five, seven o'clock,
    four o'clock, eleven o'clock, one o'clock, eight in the morning, ten in the evening, nine tonight,
    five in the afternoon, a quarter to eight, a quarter past ten`),
  purpose:
    open(`fishing, hunting, painting, sewing, riding, music, writing, dancing, reading, morning, sailing,
    school, church, garden, farm, harbour, market, wedding, birthday, christmas, holiday, evening, summer,
    village, city, mountain, river, island, country, college, hospital, museum, theatre, castle, prison,
    railway, history, science, language, swimming, cooking, running, singing, drawing, chess, court, cricket,
    tennis, football, skating, rowing, climbing, shooting, business, police, army, family, violin, piano`),
  event:
    open(`trip, lesson, train, class, walk, party, concert, meeting, journey, race, supper, game, tour,
    visit, service, show, breakfast, practice, boat, coach, lecture, play, feast, dinner, exam, ride, fair,
    bus, match, talk, appointment, dance, contest, interview, picnic, march, flight, sale, examination,
    ceremony, exhibition, reception, auction, excursion, rehearsal, parade, conference, trial, inspection`),
  rank: open(
    "first, last, early, long, big, second, yearly, weekly, special, little, late, next, third, great, grand, final",
  ),
  bring: closed("bring, find, keep, clean, wash, hide, borrow, carry, pack, return, look for"),
  ready:
    open(`ready, late, lost, broken, open, closed, cold, empty, full, here, safe, warm, dry, clean, gone,
    wet, free, sold, done, upstairs, downstairs, outside, missing, fixed, frozen, quiet, locked, better,
    finished, dirty, heavy, wrong, early, waiting, ruined, useless, splendid, stolen, perfect, inside`),
  over: closed(
    "ready, late, over, early, full, cancelled, on Monday, on Friday, tomorrow, free, long, near",
  ),
  mood: open(`tired, happy, sorry, ready, busy, hungry, cold, afraid, ill, sick, well, angry, glad, proud, alone,
    sleepy, thirsty, safe, bored, worried, better, nervous, wet, excited, lonely, grateful, anxious, cheerful,
    sad, warm, surprised, delighted, calm, ashamed, pleased, puzzled, upset, quiet, strong, lame`),
  place:
    open(`bridge, church, station, mill, school, harbour, market, library, inn, park, river, theatre,
    museum, bakery, bank, hotel, tower, garden, lighthouse, square, farm, fountain, hospital, castle, shop,
    post office, chapel, cottage, stable, corner, barn, beach, pond, palace, court house, lodge, wharf,
    cemetery, college, factory, temple, orchard, well, gallery, tavern, forge, barracks, fort, cave, lake,
    prison, bazaar, dock, abbey, monument, terrace, arcade, warehouse, playground, pier, academy, cathedral`),
  side: open(
    "railway, market, village, river, city, harbour, country, school, garden, castle, mountain, island, north, south, forest, church",
  ),
  sky: open(`moon, river, rain, stars, rose, heart, road, sea, snow, bird, wind, morning, night, fire, summer,
    garden, valley, soldier, sailor, dream, harvest, mountain, meadow, shadow, winter, ship, forest, spring,
    light, angel, thunder, king, queen, sun, storm, tide, wolf, swallow, nightingale, shepherd, island, gypsy,
    child, mother, stranger, candle, clouds, tears, hills, fountain, dawn, crown, eagle, ocean, sparrow,
    lark, prince, beggar, mist, desert, lily, mirror, prayer, farewell, promise, whisper, ashes, train`),
  tune: open(`lonely, silver, wild, golden, silent, gentle, broken, sweet, dark, distant, quiet, sleeping, last,
    first, lost, dancing, weary, happy, merry, pale, bright, burning, secret, falling, blue, red, white,
    frozen, singing, endless, old, young, faithful, bitter, hollow, holy, shining, tender, noble, forgotten,
    crimson, restless, midnight, wandering, humble, proud, foolish, drowsy, scarlet, sacred, stormy`),
  band: closed("brothers, sisters, band, choir, family, orchestra"),
  room: open(`kitchen, parlour, bedroom, hall, study, library, cellar, attic, pantry, nursery, dining room,
    bathroom, office, garage, porch, drawing room, workshop, laundry, corridor, balcony, music room, closet,
    stairs, sitting room, school room, store room, guest room, greenhouse, stable, tower, chapel, gallery,
    passage, studio, barn, yard, cloak room, loft, terrace, courtyard, dressing room, staircase, lobby`),
  where:
    open(`back, front, upstairs, downstairs, blue, red, green, white, big, small, old, new, east, west,
    north, south, upper, lower, long, little, yellow, second, third, summer, winter, servants', children's,
    family, grey, main, corner, square, round, narrow, outer, inner, oak, private, empty, middle, marble`),
  state: closed("on, off"),
  town: open(`London, Paris, Dublin, Boston, York, Bath, Dover, Oxford, Rome, Venice, Berlin, Vienna, Naples,
    Florence, Madrid, Geneva, Edinburgh, Brighton, Portsmouth, Bristol, Liverpool, Manchester, Cambridge,
    Canterbury, Chester, Plymouth, Lincoln, Calais, Lisbon, Athens, Cairo, Bombay, Calcutta, Singapore,
    Chicago, Philadelphia, Washington, Richmond, Baltimore, New Orleans, San Francisco, Cornwall,
    Devonshire, Kent, Norfolk, Scotland, Wales, Ireland, Norway, Sweden, Holland, Egypt, Spain, Italy, Greece,
    Canada, Mexico, Peru, India, China, Japan, Jamaica, Malta, Hamburg, Dresden, Munich, Milan, Genoa,
    Marseilles, Lyons, Bordeaux, Moscow, Windsor, Winchester, Salisbury, Southampton, Gloucester, Derby`),
  quarter: closed("North, South, East, West, Upper, Lower, Old, New, Central"),
  end: closed(
    "Bridge, Street, Hill, Green, Park, Road, Lane, Square, Court, Terrace, Gardens, Place",
  ),
  spot: closed(
    "Bay, Hill, Green, Harbour, Park, Bridge, Wood, Field, Heath, Island, Valley, Falls",
  ),
  water: closed("Port, Mount, Lake, Fort, Cape, Castle"),
  day: closed(`today, tomorrow, tonight, on Monday, on Tuesday, on Wednesday, on Thursday, on Friday,
    on Saturday, on Sunday, this evening, this morning, this week, next week`),
  many: closed(
    "a dozen, six, some, three, four, two, more, ten, a basket of, a bag of, a box of, five",
  ),
  much: closed(
    "a pound of, two pounds of, some, a little, plenty of, more, half a pound of, a packet of",
  ),
  ripe: open(
    "green, red, sweet, small, large, ripe, fresh, dried, yellow, soft, Italian, Spanish, French, wild, good, cooking",
  ),
  fine: open(
    "white, brown, fresh, strong, sweet, French, good, plain, cheap, country, dark, fine, best, thick, Irish, common",
  ),
  fruit:
    open(`eggs, apples, potatoes, onions, lemons, oranges, nuts, raisins, peas, beans, mushrooms, oysters,
    cherries, plums, pears, sausages, turnips, grapes, figs, almonds, walnuts, olives, currants, melons,
    peaches, carrots, cabbages, cucumbers, strawberries, chestnuts, lobsters, crabs, pumpkins, apricots,
    buns, pies, tarts, cakes, rolls, biscuits`),
  food: open(`bread, butter, sugar, milk, tea, coffee, cheese, flour, honey, rice, soap, salt, pepper, mustard,
    chocolate, beef, mutton, ham, bacon, fish, cream, wine, vinegar, oil, jam, ginger, syrup, corn, barley,
    cider, salmon, veal, pork, porridge, lard, suet, oatmeal,
    gravy, cocoa, cinnamon, brandy, marmalade, rum, lemonade, custard, toast, broth`),
  ware: open(`candles, matches, nails, needles, buttons, envelopes, pencils, sponges, brushes, towels, plates,
    spoons, forks, knives, cups, saucers, bottles, lamps, ribbons, gloves, stockings, handkerchiefs, pins,
    screws, baskets, blankets, napkins, glasses, kettles, brooms, pillows, slippers, scissors, hooks`),
  make: open(
    "small, large, white, black, long, cheap, good, new, strong, blue, plain, silver, wooden, thick, red, short",
  ),
  list: closed("shopping, grocery, kitchen, market, christmas, party, weekend, picnic"),
};

/** Patterns of each open slot: words in braces name lists, the rest stands as it is. */
const VALUES = {
  person: ["{first}", "{first} {last}", "{title} {last}", "my friend {first}"],
  task: [
    "{fix} the {adjective} {thing}",
    "{fix} the {thing}",
    "{fix} {first}'s {thing}",
    "{grow} the {plant}",
    "{grow} the {fresh} {plant}",
    "{tend} the {animal}",
    "{tend} the {coat} {animal}",
    "{visit} {first} {last}",
    "{visit} {title} {last}",
    "{handle} the {subject} {paper}",
    "{handle} {first}'s {paper}",
    "{handle} the {edition} {paper}",
  ],
  label: [
    "the {purpose} {event}",
    "the {purpose} {event}",
    "the {rank} {event}",
    "{first}'s {event}",
  ],
  text: [
    "the {thing} is {ready}",
    "the {adjective} {thing} is {ready}",
    "the {coat} {animal} is {ready}",
    "the {purpose} {event} is {over}",
    "i am {mood}",
    "i am {mood} and {mood}",
    "i am at the {place}",
    "i am waiting near the {adjective} {place}",
    "i will {bring} the {adjective} {thing}",
    "i will {bring} the {subject} {paper}",
    "i have lost the {edition} {paper}",
    "i am going to the {side} {place}",
    "{first} is {mood}",
    "{first} will {bring} the {food}",
    "we need {fine} {food}",
  ],
  song: [
    "the {tune} {sky}",
    "{tune} {sky}",
    "{sky} and {sky}",
    "the {sky} of {town}",
    "my {tune} {sky}",
    "{tune} {first}",
  ],
  artist: ["{first} {last}", "{first} {last}", "the {last} {band}", "the {town} {band}"],
  room: ["the {where} {room}", "the {where} {room}", "the {room}", "{first}'s {room}"],
  city: ["{town}", "{quarter} {town}", "{last} {spot}", "{town} {spot}", "{water} {last}"],
  item: [
    "{many} {fruit}",
    "{many} {ripe} {fruit}",
    "{ripe} {fruit}",
    "{much} {food}",
    "{much} {fine} {food}",
    "{fine} {food}",
    "{many} {make} {ware}",
    "{make} {ware}",
  ],
  target: [
    "the {adjective} {place}",
    "the {side} {place}",
    "the {place} on {last} {end}",
    "{last} {end}",
    "{first}'s {place}",
    "{town} {end}",
    "the {town} {place}",
  ],
};

/** Each call: its arguments in order, and the requests it answers. An argument not asked for is left out. */
const CALLS = [
  {
    call: "reminder",
    args: { task: "task", time: "@time" },
    requests: [
      "remind me to {task} at {time}",
      "remind me at {time} to {task}",
      "please remind me to {task} at {time}",
      "at {time} remind me to {task}",
      "do not let me forget to {task} at {time}",
      "i have to {task} at {time}, please remind me",
      "set a reminder for {time} to {task}",
      "set a reminder to {task}",
      "remind me to {task}",
      "can you remind me to {task}?",
      "i must not forget to {task}",
      "make a note that i should {task} at {time}",
    ],
  },
  {
    call: "alarm",
    args: { time: "@time", label: "label" },
    requests: [
      "wake me at {time} for {label}",
      "set an alarm for {time}, it is for {label}",
      "set an alarm at {time} for {label}",
      "please wake me up at {time} for {label}",
      "i need an alarm at {time} for {label}",
      "for {label} wake me at {time}",
      "get me up at {time} because of {label}",
      "can you wake me for {label} at {time}?",
      "alarm at {time}, it is for {label}",
      "ring at {time} for {label}",
    ],
  },
  {
    call: "message",
    args: { to: "person", text: "text" },
    requests: [
      "tell {to} that {text}",
      "tell {to} {text}",
      "send {to} a message saying {text}",
      "send a message to {to} saying {text}",
      "write to {to} that {text}",
      "text {to} that {text}",
      "let {to} know that {text}",
      "please tell {to} that {text}",
      "message {to} and say {text}",
      "can you tell {to} that {text}?",
      "say to {to} that {text}",
    ],
  },
  {
    call: "play",
    args: { song: "song", artist: "artist" },
    requests: [
      "play {song} by {artist}",
      "play {song}",
      "please play {song} by {artist}",
      "play the song {song}",
      "i want to hear {song} by {artist}",
      "i want to hear {song}",
      "put on {song} by {artist}",
      "let me hear {song}",
      "can you play {song} by {artist}?",
      "start the song {song} by {artist}",
      "play something by {artist}",
      "put on some music by {artist}",
    ],
  },
  {
    call: "lights",
    args: { room: "room", state: "@state" },
    requests: [
      "turn {state} the lights in {room}",
      "turn the lights {state} in {room}",
      "turn {room} lights {state}",
      "switch {state} the lamp in {room}",
      "switch the lamp in {room} {state}",
      "please turn {state} the lights in {room}",
      "in {room} turn the lights {state}",
      "lights {state} in {room}",
      "can you switch {state} {room} lights?",
      "i want the lights {state} in {room}",
    ],
  },
  {
    call: "weather",
    args: { place: "city", day: "@day" },
    requests: [
      "what is the weather in {place} {day}?",
      "what is the weather like in {place}?",
      "how is the weather in {place} {day}?",
      "will it rain in {place} {day}?",
      "will it be cold in {place} {day}?",
      "is it going to snow in {place} {day}?",
      "do i need a coat in {place} {day}?",
      "tell me the weather for {place} {day}",
      "show me the weather in {place}",
      "weather in {place} {day}",
      "how warm will it be in {place} {day}?",
    ],
  },
  {
    call: "add",
    args: { item: "item", list: "@list" },
    requests: [
      "add {item} to the {list} list",
      "add {item} to my {list} list",
      "put {item} on the {list} list",
      "please put {item} on my {list} list",
      "we need {item} on the {list} list",
      "i need {item}, put it on the {list} list",
      "write {item} on the {list} list",
      "can you add {item} to the {list} list?",
      "on the {list} list put {item}",
      "the {list} list needs {item}",
    ],
  },
  {
    call: "navigate",
    args: { to: "target", from: "target" },
    requests: [
      "take me to {to}",
      "how do i get to {to}?",
      "how do i get from {from} to {to}?",
      "show me the way to {to}",
      "show me the way from {from} to {to}",
      "drive to {to}",
      "find the way to {to} from {from}",
      "i want to go to {to}",
      "please guide me to {to}",
      "where is {to}?",
      "give me directions to {to}",
      "i am at {from}, take me to {to}",
    ],
  },
];

const fill = (pattern, set) => pattern.replace(/\{(\w+)\}/g, (_, name) => pick(LISTS[name][set]));

/** One request with its call; `set` names which words may be used. */
function item({ call, args, requests }, set) {
  const request = pick(requests);
  const values = {};
  for (const [name, slot] of Object.entries(args)) {
    if (!request.includes(`{${name}}`)) continue;
    values[name] = slot.startsWith("@")
      ? pick(LISTS[slot.slice(1)][set])
      : fill(pick(VALUES[slot]), set);
  }
  const prompt = request.replace(/\{(\w+)\}/g, (_, name) => values[name]);
  const list = Object.entries(values).map(([name, value]) => `${name}: ${value}`);
  return { prompt, completion: `${call}(${list.join(", ")})`, values: Object.values(values) };
}

/** A value named twice, or a word said twice ("rain and rain"). */
const repeats = ({ prompt, values }) =>
  new Set(values).size < values.length || /\b(\w+)(?: and)? \1\b/i.test(prompt);

const train = [];
const seen = new Set();
while (train.length < TRAIN) {
  const made = item(CALLS[train.length % CALLS.length], "train");
  if (seen.has(made.prompt) || repeats(made) || made.completion.length > LONGEST) continue;
  seen.add(made.prompt);
  train.push(made);
}

const trainText = train
  .map((made) => ` ${words(made.prompt)} \n ${words(made.completion)} `)
  .join("\n");
const trainWords = new Set(trainText.split(/\s+/));

/** Lower-case words with single spaces: letters, digits and apostrophes. */
function words(text) {
  return text
    .toLowerCase()
    .match(/[a-z0-9']+/g)
    .join(" ");
}
const isUnseen = (value) => !trainText.includes(` ${words(value)} `);
const hasUnseenWord = (value) =>
  words(value)
    .split(" ")
    .some((word) => !trainWords.has(word));

const heldout = [];
while (heldout.length < HELDOUT) {
  const made = item(CALLS[heldout.length % CALLS.length], "heldout");
  if (seen.has(made.prompt) || repeats(made) || made.completion.length > LONGEST) continue;
  if (!made.values.some(isUnseen)) continue;
  if (heldout.length % 3 === 0 && !made.values.some(hasUnseenWord)) continue;
  seen.add(made.prompt);
  heldout.push(made);
}

const lines = (items) =>
  items.map(({ prompt, completion }) => `${JSON.stringify({ prompt, completion })}\n`).join("");
mkdirSync(out, { recursive: true });
writeFileSync(join(out, "train.jsonl"), lines(shuffle(train)));
writeFileSync(join(out, "heldout.jsonl"), lines(shuffle(heldout)));

const distinct = (items) => new Set(items.flatMap((made) => made.values)).size;
const longest = (items, key) => Math.max(...items.map((made) => made[key].split(" ").length));
console.log(
  `train: ${train.length} requests, ${distinct(train)} distinct slot values, ${trainWords.size} words`,
);
console.log(`held out: ${heldout.length} requests, ${distinct(heldout)} distinct slot values`);
console.log(
  `held out with a word the training file lacks: ${heldout.filter((m) => m.values.some(hasUnseenWord)).length}`,
);
console.log(
  `longest: prompt ${longest([...train, ...heldout], "prompt")} words, completion ${longest([...train, ...heldout], "completion")} words`,
);
