"""Eight more sets of drawn images that stand for kinds people segment, half of them grey: what the others do not cover.

No method was run on them while they were drawn: the pictures and the class shares alone were judged. In all of them
light varies within and between images, the lens blurs, the sensor is noisy, and a class varies within itself.

- `chest-films`: X-ray projections, grey. Ribs and collarbones cross lung and wall, clouding brightens the lung, and
  heart and abdomen are equally dense: place and outline tell them from each other and from the wall.
- `cast-iron`: an etched polish of iron, grey. Lamellae lie differently in every colony and are at times too fine to
  see, ferrite's grains have dark seams and pits, graphite is in nodules or in flakes.
- `sonar`: the sea floor by side-scan sonar, grey. Speckle multiplies; what stands up throws shadows away from the
  sonar, longer ones farther off, nearly as dark as mud; bands of gain cross the image.
- `concrete`: a wall, grey, sound for the most part. Cracks are thin, branch and wander, stains shade off, broken
  places show pebbles of any grey, and bubble holes and the seams of the formwork are none of these.
- `dermatoscopy`: a mole on skin of any tone. Its edge is ragged or fades, pigment makes a mesh, dots or a veil, and
  hairs, bubbles and redness belong to whatever they lie on.
- `plates`: four foods on a plate on a table. White rice lies on white china, brown meat is the colour of the wood of
  some tables, piles cover each other and cast shadows, sauce and shine alter them.
- `circuit-boards`: parts and wiring from above, mostly bare board. Lacquer has any of five colours and covers the
  traces, solder shines or is dull, parts are black, brown or grey, white print is thin.
- `sea-ice`: floes from the air. Thin ice is anything between water and dirty snow, ponds are pale or as dark as water,
  ridges cast shadows, and glint or haze brightens the water.
"""

import numpy as np
from drawing import Drawn, DrawnSet, ellipse, grid, mixed, noise, photograph, pick, tones, turned
from scipy.ndimage import binary_opening, gaussian_filter


def strand(rng: np.random.Generator, side: int, start, heading: float, length: int, wander: float) -> np.ndarray:
    """Points [length, 2], a pixel apart, of a line whose heading (as `turned` has it) wanders."""
    headings = heading + np.cumsum(wander * rng.normal(size=length))
    return np.array(start) + np.cumsum(np.stack([np.sin(headings), np.cos(headings)], -1), 0)


def apart(side: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every pixel's distance to the nearest of several points, and the number of that point."""
    y, x = grid(side)
    squares = (y[..., None] - points[:, 0]) ** 2 + (x[..., None] - points[:, 1]) ** 2
    nearest = squares.argmin(-1)
    return np.sqrt(np.take_along_axis(squares, nearest[..., None], -1)[..., 0]), nearest


def mosaic(rng: np.random.Generator, side: int, number: int, ragged: float) -> tuple[np.ndarray, np.ndarray]:
    """The number of the cell at every pixel, and about how far it is from the cell's edge, in pixels."""
    points = rng.uniform(-6, side + 6, (number, 2))
    y, x = grid(side) + ragged * np.stack([noise(rng, side, 2.5), noise(rng, side, 2.5)])
    squares = (y - points[:, :1, None]) ** 2 + (x - points[:, 1:, None]) ** 2
    nearest = np.sqrt(np.partition(squares, 1, 0)[:2])
    return squares.argmin(0), (nearest[1] - nearest[0]) / 2


def step(x: np.ndarray, softness: float) -> np.ndarray:
    """From 0 to 1 as x passes 0."""
    return 0.5 + 0.5 * np.tanh(x / softness)


def chest_films(rng: np.random.Generator, side: int) -> Drawn:
    air, wall, lung, heart, abdomen = range(5)
    zoom = side / 2 * rng.uniform(0.88, 1.12)
    x, y = (c / zoom for c in turned(side, rng.normal(0, 0.05), side / 2 + rng.normal(0, 2.5, 2)))
    uneven, soft = noise(rng, side, 6), noise(rng, side, 2.5)
    x, y = x + 0.015 * uneven, y + 0.02 * noise(rng, side, 7)
    trunk, lower = rng.uniform(0.78, 0.98), rng.uniform(-0.45, -0.15)  # half its width, and where the arms part from it
    width = 0.3 + 1.1 * step(y + 0.86, 0.10) - (1.4 - trunk) * step(y - lower, 0.09)
    breath, heights = rng.uniform(0.36, 0.58), rng.normal([0, 0.05], 0.03)  # of the two halves of the diaphragm
    place = trunk * rng.uniform(0.46, 0.50)  # of the middle of each lung
    dome = breath + np.where(x < 0, *heights) - 0.14 * (1 - ((abs(x) - place * 0.8) / place) ** 2)
    label = np.where(abs(x) < width, wall, air)
    label[(label == wall) & (y > dome) & (abs(x) < width - 0.10)] = abdomen
    reach = trunk * rng.uniform(0.40, 0.44)
    apex, bottom = rng.uniform(-0.86, -0.76), breath + 0.25
    rows = (y - (apex + bottom) / 2) / (bottom - apex) * 2
    # Lungs narrow to the top.
    inside = abs((abs(x) - place - 0.10 * rows.clip(-1, 0)) / reach) ** 2.4 + abs(rows) ** 2.4 < 1
    label[inside & (y < dome)] = lung
    size, lean = rng.uniform(0.27, 0.40), rng.uniform(0.06, 0.16)
    shadow = np.hypot((x - lean) / size, (y - breath + 0.22) / (0.8 * size + 0.04)) < 1
    shadow |= abs(x - 0.03) < rng.uniform(0.12, 0.17) + 0.05 * np.exp(-(((y + 0.3) / 0.15) ** 2))
    label[shadow & (y < dome) & (y > apex + 0.08) & ((label == lung) | (abs(x) < place))] = heart
    depth = np.sqrt(((width - abs(x)) / 0.5).clip(0, 1))  # the wall is seen edge-on at the sides
    roots = np.exp(-np.hypot(abs(x) - 0.2, (y + 0.12) * 0.7) / 0.22)
    branches = np.exp(-((noise(rng, side, 1.3) / 0.4) ** 2))
    of_lung = 0.21 + 0.20 * roots * branches + 0.04 * branches + 0.02 * soft
    for _ in range(rng.choice([0, 1, 2], p=[0.55, 0.3, 0.15])):  # clouding
        centre = rng.choice([-1, 1]) * place, rng.uniform(-0.4, 0.3)
        cloud = np.exp(-(((x - centre[0]) / 0.25) ** 2) - ((y - centre[1]) / 0.25) ** 2 + 0.3 * soft)
        of_lung = of_lung + rng.uniform(0.08, 0.2) * cloud
    breasts = rng.choice([0, 0.10]) * step(0.42 - np.hypot(abs(x) - place, y - 0.12), 0.03)
    of_wall = 0.12 + rng.uniform(0.32, 0.44) * depth + 0.03 * uneven
    of_heart = 0.62 + 0.08 * np.exp(-((x / 0.10) ** 2)) * (0.6 + 0.4 * np.sin(2 * np.pi * y / 0.13)) + 0.02 * soft
    of_abdomen = 0.60 + 0.05 * uneven + 0.10 * np.exp(-((x / 0.11) ** 2))
    if rng.random() < 0.4:  # gas in the stomach
        of_abdomen -= 0.25 * step(0.13 - np.hypot(x - 0.4, (y - breath - 0.10) * 1.5), 0.03)
    grey = pick([np.full_like(x, 0.03), of_wall, of_lung + breasts, of_heart, of_abdomen], label)
    spacing, droop = rng.uniform(0.17, 0.22), rng.uniform(0.3, 0.6)
    behind = (y - droop * (abs(x) - 0.35) ** 2 + 0.10 * abs(x)) / spacing
    before = (y + rng.uniform(0.4, 0.7) * abs(x)) / spacing + rng.random()
    ribs = np.exp(-(((behind % 1 - 0.5) / 0.2) ** 2)) + 0.45 * np.exp(-(((before % 1 - 0.5) / 0.2) ** 2))
    ribs *= step(width - 0.05 - abs(x), 0.03) * step(abs(x) - 0.10, 0.05) * (y > apex)
    grey += rng.uniform(0.06, 0.13) * ribs * np.array([0, 0.7, 1, 0.35, 0.25])[label]
    collar = abs(y - apex - 0.13 + rng.uniform(0.15, 0.35) * abs(x)) < 0.035
    grey += 0.14 * (collar & (abs(x) > 0.10) & (abs(x) < 0.75))
    if rng.random() < 0.25:  # a lead
        distance, _ = apart(side, strand(rng, side, rng.uniform(0, side, 2), rng.uniform(0, 6.3), 50, 0.12))
        grey += 0.22 * np.exp(-((distance / 0.8) ** 2))
    grey = 0.9 * gaussian_filter(grey, 0.3).clip(0) ** rng.uniform(0.75, 1.25)
    return photograph(rng, grey, 0.2, 0.7, 0.028), label


def cast_iron(rng: np.random.Generator, side: int) -> Drawn:
    ferrite, pearlite, graphite = range(3)
    ragged, fine, uneven = noise(rng, side, 1.2), noise(rng, side, 0.7), noise(rng, side, 5)
    flakes = rng.random() < 0.35
    body = np.full((side, side), 99.0)  # distance from the edge of the nearest graphite
    for _ in range(rng.integers(8, 16) if flakes else rng.integers(5, 13)):
        place = rng.uniform(-3, side + 3, 2)
        if flakes:
            points = strand(rng, side, place, rng.uniform(0, 2 * np.pi), rng.integers(14, 36), 0.13)
            distance, nearest = apart(side, points)
            thick = rng.uniform(1.3, 2.4) * (1 - 0.5 * abs(2 * nearest / len(points) - 1))
            body = np.minimum(body, distance - thick + 0.25 * ragged)
        else:
            radius = rng.uniform(3.2, 8.0)
            distance = ellipse(side, place, radius, rng.uniform(1, 1.3), rng.uniform(0, np.pi))
            body = np.minimum(body, (distance - 1) * radius + 0.45 * ragged)
    number = rng.integers(18, 40)
    cell, edge = mosaic(rng, side, number, 0.8)
    kinds = np.where(rng.random(number) < rng.uniform(0.15, 0.6), ferrite, pearlite)
    # Where graphite took the carbon there is ferrite.
    halo = rng.choice([-9.0, 2.0]) if flakes else rng.uniform(0.5, 5.5)
    label = np.where(body + 0.6 * uneven < halo, ferrite, kinds[cell])
    label[body < 0] = graphite
    lie, pitch, depth = rng.uniform(0, np.pi, number), rng.uniform(2.4, 4.4, number), rng.uniform(0.05, 0.20, number)
    y, x = grid(side)
    across = np.cos(lie)[cell] * y - np.sin(lie)[cell] * x + 0.7 * uneven
    lamellae = np.tanh(2 * np.sin(2 * np.pi * across / pitch[cell] + 0.5 * ragged))
    of_pearlite = rng.uniform(0.42, 0.60, number)[cell] + depth[cell] * lamellae + 0.03 * fine + 0.02 * uneven
    seams = np.exp(-((edge / 0.6) ** 2))
    of_ferrite = 0.74 + (0.04 * rng.normal(size=number))[cell] - rng.uniform(0.12, 0.35) * seams + 0.015 * fine
    of_graphite = 0.17 + 0.05 * ragged + 0.05 * fine + 0.08 * np.exp(-((body / 1.2) ** 2))
    scene = pick([of_ferrite, of_pearlite, of_graphite], label)
    scene += 0.10 * ((body > 0) & (body < 1.0))  # relief
    for _ in range(rng.poisson(4)):  # pits
        scene -= rng.uniform(0.1, 0.3) * np.exp(-(ellipse(side, rng.uniform(0, side, 2), rng.uniform(0.7, 1.1)) ** 2))
    for _ in range(rng.poisson(0.8)):  # scratches
        v = turned(side, rng.uniform(0, np.pi), rng.uniform(0, side, 2))[1]
        scene += rng.choice([-0.08, 0.08]) * np.exp(-((v / 0.6) ** 2))
    return photograph(rng, scene.clip(0.05), 0.3, 0.65, 0.022), label


def sonar(rng: np.random.Generator, side: int) -> Drawn:
    mud, ripples, rock, shadow = range(4)
    height = rng.uniform(8, 11.5)  # of the sonar over the floor, in pixels
    reach = np.arange(side) + rng.uniform(14, 30)  # from under it
    y, x = grid(side)
    slow, rough, fine = noise(rng, side, 5), noise(rng, side, 1.5), noise(rng, side, 0.8)
    sand = noise(rng, side, 9) + 0.12 * slow + rng.normal(0.1, 0.5) > 0
    label = np.where(sand, ripples, mud)
    relief = np.zeros((side, side))
    for _ in range(rng.choice([0, 1, 2], p=[0.1, 0.4, 0.5])):  # outcrops
        radius = rng.uniform(8, 15)
        distance = ellipse(side, rng.uniform(0, side, 2), radius, rng.uniform(1, 1.8), rng.uniform(0, np.pi))
        distance = distance + 0.14 * slow + 0.05 * rough
        top = rng.uniform(1.5, 3.2) * np.sqrt((1 - distance).clip(0)) * (1 + 0.35 * noise(rng, side, 2.2))
        relief, label = np.maximum(relief, top), np.where(distance < 1, rock, label)
    for _ in range(rng.integers(1, 6)):  # boulders
        radius = rng.uniform(2.4, 4.8)
        distance = ellipse(side, rng.uniform(0, side, 2), radius, rng.uniform(1, 1.5), rng.uniform(0, np.pi))
        distance = distance + 0.10 * rough
        top = rng.uniform(2.5, 4.5) * np.sqrt((1 - distance).clip(0))
        relief, label = np.maximum(relief, top), np.where(distance < 1, rock, label)
    # What lies lower than a ray that already passed something is not reached.
    rays = (relief - height) / reach
    hidden = rays < np.maximum.accumulate(rays, 1) - 0.004
    label[binary_opening(hidden, np.ones((2, 2)))] = shadow
    v = turned(side, rng.uniform(0, np.pi))[1]
    phase = 2 * np.pi * (v + slow) / rng.uniform(3.6, 6.0) + 0.5 * rough
    of_ripples = 0.30 + rng.uniform(0.10, 0.17) * np.sin(phase) + 0.03 * slow
    of_mud = rng.uniform(0.13, 0.19) + 0.012 * slow
    facing = np.gradient(gaussian_filter(relief, 0.7), axis=1)
    of_rock = 0.46 + 0.42 * facing.clip(-0.8, 1.4) + 0.10 * rough
    of_shadow = np.full((side, side), rng.uniform(0.02, 0.05))
    echo = pick([of_mud, of_ripples, of_rock.clip(0.08), of_shadow], label)
    echo = echo * np.exp(rng.uniform(-0.5, 0.5) * (x / side - 0.5) + 0.12 * noise(rng, side, 14))
    echo = echo * np.exp(0.05 * rng.normal(size=(side, 1)) + 0.06 * np.sin(y / rng.uniform(2.5, 6)))
    echo = echo * (1 + 0.10 * fine)
    seen = gaussian_filter(echo, (0.7, 0.4)) * rng.gamma(9, 1 / 9, (side, side)) + 0.015 * rng.gamma(1, 1, (side, side))
    seen = 235 * rng.uniform(0.85, 1.15) * gaussian_filter(seen, (0.35, 0.25)) ** 0.75
    flip = rng.choice([-1, 1])  # port or starboard
    return np.ascontiguousarray(seen[:, ::flip]), np.ascontiguousarray(label[:, ::flip])


def concrete(rng: np.random.Generator, side: int) -> Drawn:
    sound, crack, stain, broken = range(4)
    slow, fine = noise(rng, side, 7), noise(rng, side, 0.7)
    wall = 0.62 + 0.02 * slow + 0.02 * noise(rng, side, 2) + rng.uniform(0.015, 0.035) * fine
    for _ in range(rng.poisson(0.5)):  # where boards of the formwork met
        v = turned(side, rng.choice([0, np.pi / 2]) + rng.normal(0, 0.03), rng.uniform(6, side - 6, 2))[1]
        wall += 0.05 * np.tanh(v / 1.5) * rng.choice([-1, 1]) - 0.07 * np.exp(-((v / 1.3) ** 2))
    for _ in range(rng.poisson(5)):  # bubbles of air in the cast
        place, radius = rng.uniform(0, side, 2), rng.uniform(0.7, 1.7)
        wall -= 0.30 * np.exp(-(ellipse(side, place, radius) ** 4))
        wall += 0.08 * np.exp(-(ellipse(side, place + radius, radius * 0.7) ** 2))
    # Water has run down: a stain is longer than broad, and darkest at its tide mark.
    wet = noise(rng, side, (10, 5)) + 0.20 * noise(rng, side, (4, 1.5)) + 0.06 * noise(rng, side, 1.2)
    wet -= rng.uniform(0.2, 1.7)
    label = np.where(wet > 0, stain, sound)
    taken = rng.uniform(0.24, 0.42) * step(wet, rng.uniform(0.10, 0.25))
    scene = wall * (1 - taken - 0.10 * np.exp(-((wet / 0.15) ** 2)))
    ragged = noise(rng, side, 2)
    if rng.random() < 0.6:
        radius = rng.uniform(9, 17)
        distance = ellipse(side, rng.uniform(0, side, 2), radius, rng.uniform(1, 1.7), rng.uniform(0, np.pi))
        within = (distance - 1) * radius + 1.5 * slow + 0.8 * ragged
        number = rng.integers(90, 190)
        pebble, edge = mosaic(rng, side, number, 0.4)
        inner = rng.uniform(0.26, 0.74, number)[pebble] + 0.05 * fine - 0.32 * np.exp(-((edge / 0.7) ** 2))
        sun, slope = rng.uniform(0, 2 * np.pi), np.gradient(gaussian_filter(within, 0.7))
        facing = np.sin(sun) * slope[0] + np.cos(sun) * slope[1]
        inner += 0.16 * facing * np.exp(-(((within + 1) / 2) ** 2)) - 0.03
        label[within < 0] = broken
        scene = np.where(within < 0, inner.clip(0.12), scene)
    for _ in range(rng.choice([0, 1, 2], p=[0.25, 0.5, 0.25])):
        heading = rng.uniform(0, 2 * np.pi)
        start = side / 2 + rng.normal(0, 9, 2) - 46 * np.array([np.sin(heading), np.cos(heading)])
        line = strand(rng, side, start, heading, 92, 0.16)
        line += 0.5 * rng.normal(size=line.shape)
        lines = [(line, rng.uniform(0.8, 1.5))]
        if rng.random() < 0.6:
            fork = line[rng.integers(25, 65)]
            turn = heading + rng.choice([-1, 1]) * rng.uniform(0.5, 1.1)
            lines.append((strand(rng, side, fork, turn, rng.integers(15, 50), 0.2), rng.uniform(0.6, 1.0)))
        for points, half in lines:
            distance, _ = apart(side, points)
            open_ = (distance < half + 0.25 * ragged) & (label != broken)
            label[open_] = crack
            scene = np.where(open_, 0.13 + 0.05 * (fine + 1).clip(0), scene)
    return photograph(rng, scene, 0.3, 0.55, 0.022), label


def dermatoscopy(rng: np.random.Generator, side: int) -> Drawn:
    uneven, ragged, fine = noise(rng, side, 5), noise(rng, side, 1.8), noise(rng, side, 0.8)
    kinds = [[232, 186, 160], [214, 166, 134], [226, 172, 158], [188, 138, 104], [150, 106, 80]]
    skin = tones(rng, [kinds[rng.choice(5, p=[0.3, 0.25, 0.2, 0.15, 0.1])]], 0.06, 0.03)[0]
    flush = rng.uniform(0.03, 0.12) * (noise(rng, side, 8) + 0.4 * ragged).clip(0)
    scene = skin * np.exp(-flush[..., None] * np.array([0.2, 1, 0.8]))
    y, x = grid(side)
    folds = np.exp(-((noise(rng, side, (1.0, 2.4)) / 0.3) ** 2))
    scene *= (1 + 0.02 * fine + 0.02 * uneven - 0.035 * folds)[..., None]
    centre, radius = side / 2 + rng.normal(0, 6, 2), rng.uniform(10, 20)
    stretch, lie = rng.uniform(1, 1.5), rng.uniform(0, np.pi)
    distance = (ellipse(side, centre, radius, stretch, lie) - 1) * radius
    outline = distance + rng.uniform(0.8, 2.6) * uneven + rng.uniform(0.3, 1.0) * ragged
    label = (outline < 0).astype(int)
    # Pigment in a mesh, in dots, or spread evenly.
    u, v = (c + 1.2 * uneven for c in turned(side, rng.uniform(0, np.pi)))
    period = rng.uniform(4.0, 6.0)
    waves = [np.cos(2 * np.pi * (np.cos(a) * u + np.sin(a) * v) / period) for a in (0, np.pi / 3, 2 * np.pi / 3)]
    mesh = -np.sum(waves, 0) / 1.5
    amount = 1 + rng.uniform(0.08, 0.3) * noise(rng, side, 4) + rng.uniform(0, 0.22) * mesh + 0.05 * fine
    for _ in range(rng.choice([0, 12])):
        place = centre + rng.normal(0, radius * 0.5, 2)
        amount += rng.uniform(0.3, 0.6) * np.exp(-(ellipse(side, place, rng.uniform(0.8, 1.6)) ** 2))
    amount += rng.uniform(0, 0.5) * (step(-outline - radius * 0.45, 2) - 0.4)  # a dark core
    fade = step(-outline, rng.uniform(0.8, 3.2))
    hue = [[0.55, 1.0, 1.25], [0.45, 1.0, 1.15], [0.22, 0.85, 0.75]][rng.choice(3, p=[0.45, 0.35, 0.2])]
    density = rng.uniform(0.35, 1.2) * amount.clip(0.15) * fade
    scene = scene * np.exp(-density[..., None] * np.array(hue))
    if rng.random() < 0.25:  # a veil
        veil = 0.6 * step(4 - ellipse(side, centre + rng.normal(0, 5, 2), 1.6) - ragged, 1.5) * fade
        scene = mixed(scene, tones(rng, [[136, 140, 160]], 0.1, 0.04)[0], veil)
    for _ in range(rng.integers(1, 9) if rng.random() < 0.4 else 0):  # hairs
        heading = rng.uniform(0, 2 * np.pi)
        points = strand(rng, side, rng.uniform(0, side, 2), heading, rng.integers(30, 70), 0.04)
        strength = 0.85 * np.exp(-((apart(side, points)[0] / rng.uniform(0.5, 0.9)) ** 2))
        scene = mixed(scene, tones(rng, [[58, 44, 38]], 0.2, 0.03)[0], strength)
    for _ in range(rng.poisson(1)):  # bubbles of the gel
        distance = ellipse(side, rng.uniform(0, side, 2), rng.uniform(1.5, 4))
        scene += 0.10 * np.exp(-(((distance - 1) / 0.2) ** 2))[..., None]
    corners = np.hypot(y - side / 2, x - side / 2) / side
    scene *= (1 - rng.uniform(0.1, 0.9) * corners**2)[..., None]
    return photograph(rng, scene, 0.2, 0.65, 0.022), label


def tables(rng: np.random.Generator, side: int) -> np.ndarray:
    """A table of wood, cloth, checks or stone."""
    woods = [[142, 98, 62], [92, 64, 46], [186, 152, 112]]
    colours = [*woods, [120, 128, 136], [70, 74, 82], [196, 190, 178], [96, 116, 142]]
    kind = rng.choice(4, p=[0.45, 0.2, 0.15, 0.2])
    first = rng.integers(len(woods) if kind == 0 else len(colours))
    ground, other = tones(rng, [colours[first], colours[rng.integers(len(colours))]], 0.12, 0.04)
    u, v = turned(side, rng.normal(0, 0.15) + rng.choice([0, np.pi / 2]))
    fine = noise(rng, side, 0.7)
    if kind == 0:  # boards, with the grain of wood
        board = (v // rng.uniform(14, 22)).astype(int) % 13
        rings = np.sin(1.1 * v + 2.2 * noise(rng, side, 6)) + 0.5 * noise(rng, side, (0.8, 4))
        tone = np.exp(0.08 * rng.normal(size=13))[board] * (1 + 0.07 * rings + 0.03 * fine)
    elif kind == 1:
        tone = 1 + 0.06 * np.sin(2 * np.pi * u / 2.6) * np.sin(2 * np.pi * v / 2.6) + 0.05 * fine
    elif kind == 2:
        size = rng.uniform(5, 9)
        return mixed(ground, other, 0.35 * ((u // size) % 2 + (v // size) % 2)) * (1 + 0.03 * fine)[..., None]
    else:
        tone = 1 + 0.06 * noise(rng, side, 2) + 0.05 * fine
    return ground * tone[..., None]


def plates(rng: np.random.Generator, side: int) -> Drawn:
    table, plate, rice, meat, greens, tomato = range(6)
    scene = tables(rng, side)
    label = np.full((side, side), table)
    middle, radius = side / 2 + rng.normal(0, 4, 2), rng.uniform(23, 29)
    stretch, sun = rng.uniform(1, 1.25), rng.uniform(0, 2 * np.pi)
    dish = ellipse(side, middle, radius, stretch)
    toward = np.array([np.sin(sun), np.cos(sun)])
    scene *= (1 - 0.45 * step(1 - ellipse(side, middle - 2.5 * toward, radius, stretch), 0.06))[..., None]
    china = [[236, 234, 230], [228, 220, 200], [176, 190, 206], [84, 88, 96]][rng.choice(4, p=[0.55, 0.2, 0.15, 0.1])]
    china, band = tones(rng, [china, [110, 120, 150]], 0.05, 0.02)
    lit = turned(side, sun, middle)[0] / radius
    hollow = np.exp(-(((dish - 0.74) / 0.05) ** 2))
    tone = 0.92 + 0.06 * lit * np.where(dish < 0.74, -0.6, 1) - 0.12 * hollow * lit + 0.012 * noise(rng, side, 1)
    of_plate = china * tone[..., None]
    if rng.random() < 0.3:
        of_plate = mixed(of_plate, band, 0.8 * np.exp(-(((dish - 0.94) / 0.03) ** 2)))
    scene, label = np.where((dish < 1)[..., None], of_plate, scene), np.where(dish < 1, plate, label)
    ragged, lumps, fine, slow = (noise(rng, side, sigma) for sigma in (1.2, 2.2, 0.7, 5))
    kinds = rng.permutation([rice, meat, greens, tomato])[: rng.choice([2, 3, 4], p=[0.15, 0.4, 0.45])]
    turn = rng.uniform(0, 2 * np.pi)
    for number, kind in enumerate(kinds):
        way = turn + 2 * np.pi * number / len(kinds) + rng.normal(0, 0.2)
        centre = middle + radius * rng.uniform(0.30, 0.46) * np.array([np.sin(way), stretch * np.cos(way)])
        size, long, lie = radius * rng.uniform(0.34, 0.47), rng.uniform(1, 1.4), rng.uniform(0, np.pi)
        if kind == tomato:  # slices or halves
            pieces = centre + rng.normal(0, size * 0.5, (rng.integers(4, 10), 2))
            sizes = rng.uniform(3.0, 4.8, len(pieces))
            distance = np.min([ellipse(side, p, r) for p, r in zip(pieces, sizes, strict=True)], 0)
        else:
            wobble = {rice: 0.07, meat: 0.03, greens: 0.14}[kind]
            distance = ellipse(side, centre, size, long, lie) + wobble * ragged + 0.08 * lumps + 0.06 * slow
        here = (distance < 1) & (dish < 0.86)
        cast = np.roll(here, np.rint(-1.6 * toward).astype(int), (0, 1)) & ~here
        scene[cast] *= 0.68
        side_lit = 0.10 * turned(side, sun, centre)[0] / size
        if kind == rice:
            grains = np.where(slow > 0, noise(rng, side, (0.5, 1.3)), noise(rng, side, (1.3, 0.5)))
            tone = 0.90 + 0.09 * grains + side_lit + 0.03 * lumps
            colour = tones(rng, [[232, 220, 192]], 0.05, 0.03)[0] * tone[..., None]
        elif kind == meat:
            across = turned(side, lie + rng.normal(0, 0.5), centre)[1]
            sear = np.exp(-((((across / rng.uniform(4, 6)) % 1 - 0.5) / 0.16) ** 2)) * rng.choice([0, 0.45])
            brown = tones(rng, [[136, 84, 52]], 0.14, 0.05)[0]
            tone = np.exp(0.10 * lumps + 0.09 * fine + side_lit - sear - 0.25 * (distance - 0.8).clip(0))
            colour = brown * tone[..., None] + 0.13 * (ragged - 1.3).clip(0)[..., None]
        elif kind == greens:
            green, pale = tones(rng, [[66, 112, 44], [150, 176, 92]], 0.12, 0.05)
            veins = np.exp(-((noise(rng, side, 1.3) / 0.25) ** 2))
            colour = mixed(green, pale, 0.3 + 0.45 * veins + 0.15 * lumps) * np.exp(0.25 * ragged + side_lit)[..., None]
        else:
            red, juice = tones(rng, [[196, 58, 40], [224, 122, 74]], 0.10, 0.04)
            shine = np.exp(-((ellipse(side, centre + 2 * toward, 1.5)) ** 2))
            pips = step(0.62 - distance, 0.08) * (0.5 + 0.35 * ragged)
            colour = mixed(red, juice, pips) * (1.05 - 0.25 * distance.clip(0, 1) ** 4 + side_lit)[..., None]
            colour += 0.3 * shine[..., None]
        scene[here] = colour[here]
        label[here] = kind
    if rng.random() < 0.35:  # sauce over some of it
        pool = ellipse(side, middle + rng.normal(0, 5, 2), rng.uniform(3, 6), 1.5, turn) + 0.15 * lumps
        gloss = 0.5 * step(1 - pool, 0.15) * (dish < 0.8) * (label != plate)
        scene = mixed(scene, tones(rng, [[120, 70, 36]], 0.15, 0.05)[0], gloss)
    return photograph(rng, scene, 0.3, 0.65, 0.024), label


def circuit_boards(rng: np.random.Generator, side: int) -> Drawn:
    board, trace, solder, part, printed = range(5)
    u, v = turned(side, rng.normal(0, 0.06), (side / 2, side / 2))
    fine, slow = noise(rng, side, 0.7), noise(rng, side, 8)
    lacquers = [[34, 96, 58], [26, 74, 42], [32, 66, 118], [132, 36, 40], [44, 46, 52]]
    lacquer = tones(rng, [lacquers[rng.choice(5, p=[0.35, 0.25, 0.18, 0.12, 0.10])]], 0.12, 0.05)[0]
    label = np.full((side, side), board)
    scene = lacquer * (1 + 0.05 * noise(rng, side, 1.2) + 0.03 * fine + 0.05 * slow)[..., None]
    copper = (lacquer * rng.uniform(1.35, 1.65) + np.array([0.07, 0.08, 0.03])) * (1 + 0.05 * fine)[..., None]
    metal = tones(rng, [[[176, 176, 172], [206, 180, 116]][rng.integers(2)]], 0.08, 0.03)[0]  # tin or gold
    of_solder = metal * (0.9 + 0.22 * noise(rng, side, 1.3))[..., None]
    ink = np.array([0.84, 0.84, 0.80]) * (1 + 0.04 * fine)[..., None]

    def lay(where: np.ndarray, kind: int, colour: np.ndarray) -> None:
        label[where] = kind
        scene[where] = np.broadcast_to(colour, scene.shape)[where]

    wired = np.zeros((side, side), bool)
    for _ in range(rng.integers(3, 7)):  # bundles of traces, each with a bend of 45 degrees
        a, b = (u, v) if rng.random() < 0.5 else (v, u)
        pitch, half = rng.uniform(4.0, 5.5), rng.uniform(0.9, 1.4)
        first, bend, shift = rng.uniform(-34, 24), rng.uniform(-24, 24), rng.uniform(4, 16) * rng.choice([-1, 1])
        start, end = np.sort(rng.uniform(-40, 40, 2)) + np.array([-8, 8])
        bundle = np.zeros((side, side), bool)
        for k in range(rng.integers(1, 6)):
            jog = np.sign(shift) * (a - bend - 0.4 * k * np.sign(shift) * pitch).clip(0, abs(shift))
            away = b - first - k * pitch - jog
            sloped = (jog != 0) & (abs(jog) < abs(shift))
            line = (abs(away) < half * np.where(sloped, 1.3, 1)) & (a > start) & (a < end)
            if (line & wired).any():  # another bundle is in the way
                continue
            lay(line, trace, copper)
            bundle |= (abs(away) < half + 1.5) & (a > start - 2) & (a < end + 2)
            if rng.random() < 0.5:  # a via at its end
                ring = np.hypot(a - rng.choice([start, end]), away)
                lay(ring < 2.1, solder, of_solder)
                scene[ring < 0.8] = 0.06
        wired |= bundle
    taken = np.zeros((side, side), bool)
    shade = np.zeros((side, side), bool)
    for _ in range(rng.integers(5, 12)):
        place, big = rng.uniform(-28, 28, 2), rng.random() < 0.35
        a, b = (u - place[0], v - place[1])[:: rng.choice([-1, 1])]
        long, wide = (
            (rng.uniform(7, 12), rng.uniform(4.5, 8)) if big else (rng.uniform(3.0, 4.5), rng.uniform(1.7, 2.6))
        )
        pins = 2.6 if big else 0
        room = (abs(a) < long + 2) & (abs(b) < wide + pins + 2)
        if (room & taken).any():
            continue
        taken |= room
        body = (abs(a) < long) & (abs(b) < wide)
        if rng.random() < 0.6:
            frame = (abs(a) < long + 1.6) & (abs(b) < wide + pins + 1.6)
            frame &= ~((abs(a) < long + 0.5) & (abs(b) < wide + pins + 0.5))
            lay(frame, printed, ink)
        if big:
            gap = rng.uniform(3.6, 4.8)
            lay((abs(a) < long - 0.8) & (abs(b) < wide + pins) & ((a % gap) < gap * 0.5), solder, of_solder)
            plastic = tones(rng, [[38, 38, 42]], 0.2, 0.03)[0]
            lay(body, part, plastic * (1 + 0.06 * fine + 0.10 * (b / wide))[..., None])
            text = body & (abs(b) < wide * 0.4) & (abs(a) < long * 0.6) & (noise(rng, side, (0.4, 0.8)) > 0.6)
            scene[text] += 0.16
            dot = np.hypot(a + long - 2.2, b - wide + 2.2) < 1.0
            scene[dot] += 0.08
        else:
            cover = tones(rng, [[[44, 44, 48], [150, 118, 84], [120, 120, 124]][rng.integers(3)]], 0.12, 0.04)[0]
            lay(body, part, cover * (1.0 + 0.05 * fine + 0.08 * (b / wide))[..., None])
            lay(body & (abs(a) > long * 0.62), solder, of_solder)
        shade |= body
    for _ in range(rng.integers(1, 4)):  # names of parts
        place, count = rng.uniform(-28, 28, 2), rng.integers(2, 5)
        a, b = u - place[0], v - place[1]
        strokes = noise(rng, side, 0.7) + 0.6 * np.cos(2 * np.pi * a / 3.6) > 0.55
        lay((a > 0) & (a < 3.6 * count) & (abs(b) < 2.2) & strokes & ~taken, printed, ink)
    for _ in range(rng.integers(0, 4)):  # pads or holes of their own
        distance = np.hypot(u - rng.uniform(-30, 30), v - rng.uniform(-30, 30)) / rng.uniform(2.2, 4.0)
        lay((distance < 1) & ~taken, solder, of_solder)
        scene[(distance < 0.45) & ~taken] = 0.05
    cast = np.roll(shade, rng.choice([-1, 1], 2), (0, 1)) & ~shade
    scene[cast] *= 0.62
    glare = rng.uniform(0, 0.10) * step(noise(rng, side, 10) - 1, 0.5)  # of the lacquer
    return photograph(rng, scene + glare[..., None], 0.3, 0.6, 0.022), label


def sea_ice(rng: np.random.Generator, side: int) -> Drawn:
    water, thin, snow, pond = range(4)
    slow, fine, ragged = noise(rng, side, 7), noise(rng, side, 0.8), noise(rng, side, 1.5)
    number = rng.choice([9, 14, 22, 40])
    floe, edge = mosaic(rng, side, number, 1.0)
    edge = edge + 0.4 * ragged
    shares = rng.dirichlet([1.3, 1.5, 5.5])
    kinds = rng.choice([water, thin, snow], number, p=shares)
    refrozen = slow + rng.normal(0, 0.7) > 0
    lead = rng.uniform(0.4, 2.2) * (1 + 0.35 * noise(rng, side, 9)).clip(0.2)
    label = np.where(edge < lead, np.where(refrozen, thin, water), kinds[floe])
    wind = rng.uniform(0, np.pi)
    u, v = turned(side, wind)
    melt = noise(rng, side, rng.uniform(2.2, 3.6)) + 0.15 * ragged - rng.uniform(-0.4, 1.3)
    label[(label == snow) & (melt > 0) & (edge > lead + 1.2)] = pond
    deep, grey, white, blue, dark = tones(
        rng, [[26, 40, 54], [116, 126, 134], [208, 212, 216], [118, 184, 196], [44, 92, 122]], 0.10, 0.03
    )
    wavelets = np.sin(1.7 * v + 1.5 * slow) * 0.5 + fine
    glint = rng.choice([0, 0.25]) * np.exp(-((turned(side, wind, rng.uniform(0, side, 2))[0] / 14) ** 2))
    of_water = deep * (1 + 0.12 * wavelets)[..., None] + (glint * (0.5 + 0.3 * wavelets).clip(0))[..., None]
    # As ice grows it goes from the grey of water to that of snow; sheets slide over each other in straight fingers.
    age = rng.uniform(0.3, 0.85) + 0.16 * noise(rng, side, 5) + (0.10 * rng.normal(size=number))[floe]
    fingers = np.sign(np.sin(2 * np.pi * (u + 5 * np.sign(np.sin(2 * np.pi * v / 9))) / 23))
    sheet = mixed(deep * 1.5, grey * 1.25, age + 0.07 * fingers)
    of_thin = sheet * (1 + 0.03 * fine)[..., None]
    sun = rng.uniform(0, 2 * np.pi)
    drifts = noise(rng, side, 1.2) * 0.4 + np.sin(0.9 * v + 2.5 * noise(rng, side, 3.5)) * 0.4
    ridges = np.exp(-((noise(rng, side, 4) / 0.10) ** 2)) * (noise(rng, side, 8) > 0.3)
    relief = gaussian_filter(drifts * 0.25 + ridges * (1.2 + 0.8 * fine), 0.5)
    slope = np.gradient(relief)
    lit = rng.uniform(0.15, 0.5) * (np.sin(sun) * slope[0] + np.cos(sun) * slope[1])
    dirt = rng.choice([0.04, 0.16]) * step(noise(rng, side, 5) - 0.6, 0.5)
    of_snow = white * (0.93 + lit - dirt + (0.03 * rng.normal(size=number))[floe])[..., None]
    shallow = 0.55 * step(0.35 - melt, 0.3) + rng.uniform(0, 0.45) + 0.10 * slow
    of_pond = mixed(dark, blue, shallow) * (1 + 0.03 * fine)[..., None]
    scene = np.take_along_axis(np.stack([of_water, of_thin, of_snow, of_pond]), label[None, ..., None], 0)[0]
    rim = (label == snow) & (edge < lead + 1)
    scene[rim] *= 1.04
    cast = np.roll(label == snow, np.rint(-1.2 * np.array([np.sin(sun), np.cos(sun)])).astype(int), (0, 1))
    scene[cast & (label == thin)] *= 0.82  # floes stand above thin ice
    haze = rng.choice([0, 0.18]) * step(noise(rng, side, 12), 1.0)
    scene = mixed(scene, np.array([0.78, 0.80, 0.83]), haze)
    return photograph(rng, scene, 0.35, 0.65, 0.022), label


VIEWS = (
    DrawnSet("chest-films", ("air", "wall", "lung", "heart", "abdomen"), chest_films),
    DrawnSet("cast-iron", ("ferrite", "pearlite", "graphite"), cast_iron),
    DrawnSet("sonar", ("mud", "ripples", "rock", "shadow"), sonar),
    DrawnSet("concrete", ("sound", "crack", "stain", "broken"), concrete),
    DrawnSet("dermatoscopy", ("skin", "mole"), dermatoscopy),
    DrawnSet("plates", ("table", "plate", "rice", "meat", "greens", "tomato"), plates),
    DrawnSet("circuit-boards", ("board", "trace", "solder", "part", "print"), circuit_boards),
    DrawnSet("sea-ice", ("water", "thin ice", "snow ice", "pond"), sea_ice),
)
