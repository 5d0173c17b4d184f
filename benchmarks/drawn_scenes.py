"""Eight sets of drawn images that stand for kinds people segment, several cues and several difficulties in each.

No method was run on them while they were drawn: the pictures and the class shares alone were judged. In all of them
light varies within and between images, the lens blurs, the sensor is noisy, and a class varies within itself.

- `fields`: farmland from above. Rows, cover and ripeness of a crop vary from field to field, thin crop shows the soil
  between its rows, hedges cast shadows, tracks are a few pixels wide.
- `phase-contrast`: cultured cells, grey. Spread cells have nearly the grey of the medium; edges, halos and granules
  tell. Rounded cells shine, and are few.
- `leaves`: a diseased leaf, close. Spots have pale centres and dark rims, yellowing shades off into green, veins and
  shine cross the leaf, and the ground is of any dull colour.
- `roofs`: a suburb from above. A roof has a lit and a dark side and any of four colours, asphalt is as grey as slate,
  shadows of houses lie on gardens, panels are rare and small.
- `thin-sections`: rock between crossed polarisers. The grains of a mineral are bright or dark as they lie: lamellae,
  saturated colours or smooth grey tell the minerals.
- `thermal`: buildings by thermal camera, grey and soft, stretched to the range of each image. Windows reflect the cold
  sky or leak heat, walls have warm places, and the levels of wall, ground and trees cross.
- `reef`: the sea bed seen obliquely. Water takes red and contrast away with distance, caustics and ripples lie on sand,
  each coral has a colour of its own.
- `welds`: a seam on brushed steel, grey. Its ripples are lit from one side, heat tint shades off into plate, and pores
  and cracks are few and small.
"""

import numpy as np
from drawing import Drawn, DrawnSet, ellipse, grid, mixed, noise, photograph, pick, tones, turned
from scipy.ndimage import gaussian_filter


def parcels(rng: np.random.Generator, u: np.ndarray, v: np.ndarray):
    """Strips along v, cut across: yields a field's mask and origin (u, v), and distances from borders new with it."""

    def border(offset: np.ndarray, where: np.ndarray) -> list[np.ndarray]:
        near = where & (abs(offset) < 6)
        return [np.where(near, abs(offset), np.inf)] if near.any() else []

    start = u.min() - rng.uniform(0, 20)
    while start < u.max():
        width = rng.uniform(20, 38)
        strip = (u >= start) & (u < start + width)
        borders = border(u - start, np.ones_like(strip))
        low = v[strip].min(initial=np.inf) - rng.uniform(0, 30)
        while low < v[strip].max(initial=-np.inf):
            length = rng.uniform(22, 52)
            borders += border(v - low, strip)
            yield strip & (v >= low) & (v < low + length), (start, low), borders
            borders = []
            low += length
        start += width


def fields(rng: np.random.Generator, side: int) -> Drawn:
    crop, soil, grass, hedge, track = range(5)
    u, v = (c + 0.8 * noise(rng, side, 10) for c in turned(side, rng.uniform(0, np.pi)))
    colours = [[158, 122, 92], [88, 138, 62], [208, 186, 110], [146, 172, 98], [46, 68, 40], [220, 208, 184]]
    earth, green, ripe, meadow, dark, gravel = tones(rng, colours, 0.10, 0.04)
    clods, mottle, ragged = noise(rng, side, 0.7), noise(rng, side, 5), noise(rng, side, 2.5)
    label, scene = np.zeros((side, side), int), np.zeros((side, side, 3))
    borders = []
    for here, (start, low), new in parcels(rng, u, v):
        borders += new
        kind = rng.choice([crop, soil, grass], p=[0.5, 0.27, 0.23])
        label[here] = kind
        across = u[here] - start if rng.random() < 0.7 else v[here] - low
        rows = np.sin(2 * np.pi * across / rng.uniform(3.6, 5.4))
        clod, patch = clods[here], mottle[here]
        if kind == crop:
            plant = mixed(green, ripe, rng.choice([0.0, 0.15, 0.7], 1)) * (1 + 0.10 * clod)[:, None]
            cover = rng.uniform(0.58, 0.85) + 0.34 * rows + 0.12 * patch
            wheels = abs(across % 15 - 7.5) < 0.8
            scene[here] = mixed(earth * 0.9, plant, cover - 0.4 * wheels)
        elif kind == soil:
            scene[here] = earth * (rng.uniform(0.75, 1.15) + 0.09 * patch + 0.05 * rows + 0.06 * clod)[:, None]
        else:
            scene[here] = meadow * (rng.uniform(0.85, 1.1) + 0.09 * patch + 0.06 * clod)[:, None]
    for distance in borders:
        role, width = rng.random(), rng.uniform(2.0, 3.4)
        if role < 0.4:
            label[distance + 0.8 * ragged < width] = hedge
        elif role < 0.7:
            label[distance < width * 0.85] = track
    for _ in range(rng.integers(0, 4)):  # trees of their own
        label[ellipse(side, rng.uniform(0, side, 2), rng.uniform(2.5, 5)) + 0.15 * ragged < 1] = hedge
    foliage = dark * (1 + 0.38 * noise(rng, side, 1.1))[..., None]
    surface = gravel * (1 + 0.06 * clods + 0.05 * mottle)[..., None]
    scene[label == hedge] = foliage[label == hedge]
    scene[label == track] = surface[label == track]
    reach = rng.integers(1, 4, 2) * rng.choice([-1, 1], 2)
    scene[np.roll(label == hedge, reach, (0, 1)) & (label != hedge)] *= 0.55  # shadows
    return photograph(rng, scene, 0.25, 0.6, 0.025), label


def phase_contrast(rng: np.random.Generator, side: int) -> Drawn:
    medium, spread, rounded = range(3)
    label = np.zeros((side, side), int)
    thickness = np.zeros((side, side))
    bend = noise(rng, side, 4)
    for _ in range(rng.integers(3, 9)):
        centre, radius = rng.uniform(0, side, 2), rng.uniform(6, 10)
        stretch, angle = rng.uniform(1, 2.6), rng.uniform(0, np.pi)
        distance = ellipse(side, centre, radius, stretch, angle) + 0.18 * bend
        body = (distance < 1) & (label == medium)
        label[body] = spread
        # Neighbours touch: each cell is thinnest at its own edge.
        thickness += body * (0.45 + 0.35 * np.sqrt((1 - distance).clip(0)))
        nucleus = ellipse(side, centre, radius * 0.42, 1.2, angle)
        thickness += 0.25 * body * (nucleus < 1)
        spots = ellipse(side, centre + rng.normal(0, 1.2, 2), 1.2) < 1
        thickness += 0.5 * body * spots
    balls = np.zeros((side, side))
    for _ in range(rng.poisson(2.2)):
        centre, radius = rng.uniform(0, side, 2), rng.uniform(3.6, 6.0)
        distance = ellipse(side, centre, radius, rng.uniform(1, 1.25), rng.uniform(0, np.pi))
        label[distance < 1] = rounded
        thickness = np.where(distance < 1, 0, thickness)
        balls = np.maximum(balls, (1.15 - distance**2).clip(0) * (distance < 1))
        thickness += 1.1 * ((distance > 0.82) & (distance < 1))
    granules = noise(rng, side, 0.8) * gaussian_filter((label == spread) * 1.0, 1)
    phase = gaussian_filter(thickness, 0.8) + 0.11 * granules
    # The phase ring passes low frequencies too: halos without, and inner parts that fade to the medium's grey.
    grey = 0.5 - rng.uniform(0.36, 0.5) * (phase - gaussian_filter(phase, 3))
    grey += 0.42 * gaussian_filter(balls, 0.6) + 0.012 * noise(rng, side, 2)
    for _ in range(rng.poisson(2)):  # debris
        grey += rng.choice([-0.12, 0.15]) * np.exp(-(ellipse(side, rng.uniform(0, side, 2), 1) ** 2))
    return photograph(rng, grey, 0.2, 0.5, 0.022), label


def leaves(rng: np.random.Generator, side: int) -> Drawn:
    ground, leaf, yellowing, spot = range(4)
    angle, centre = rng.uniform(0, 2 * np.pi), side / 2 + rng.normal(0, 9, 2)
    radius, stretch = rng.uniform(19, 29), rng.uniform(1.3, 1.9)
    wavy = noise(rng, side, 3)
    distance = ellipse(side, centre, radius, stretch, angle) + 0.025 * wavy
    label = np.where(distance < 1, leaf, ground)
    dull = [[112, 92, 74], [150, 146, 140], [78, 70, 66], [176, 160, 134]][rng.integers(4)]
    colours = [dull, [66, 118, 52], [186, 178, 70], [98, 62, 38], [176, 150, 116]]
    earth, green, yellow, brown, pale = tones(rng, colours, 0.12, 0.05)
    grit = rng.uniform(0.05, 0.16) * noise(rng, side, rng.uniform(0.8, 2.5)) + 0.08 * noise(rng, side, 8)
    scene = earth * np.exp(grit)[..., None]
    scene = scene * (1 - 0.45 * gaussian_filter(np.roll(distance < 1, (3, 2), (0, 1)) * 1.0, 1.5))[..., None]
    along, across = turned(side, angle, centre)
    across = across + 0.004 * along**2
    spacing = rng.uniform(8, 12)
    lateral = abs((along - 0.8 * abs(across)) % spacing - spacing / 2)
    veins = np.maximum(np.exp(-((across / 1.1) ** 2)), 0.5 * np.exp(-((lateral / 0.7) ** 2)))
    blade = green * np.exp(0.07 * noise(rng, side, 1) + 0.10 * noise(rng, side, 6) - 0.10 * np.sign(across))[..., None]
    blade = mixed(blade, green * 0.4 + 0.42, 0.6 * veins)
    sick = np.full((side, side), 9.0)  # distance from the rim of the nearest spot, in pixels
    for _ in range(rng.integers(2, 9)):
        place, size = centre + rng.normal(0, 13, 2), rng.uniform(2.2, 6.5)
        apart = (ellipse(side, place, size, rng.uniform(1, 1.5), rng.uniform(0, np.pi)) - 1) * size + 0.7 * wavy
        sick = np.minimum(sick, apart)
    halo = rng.uniform(2.0, 4.5)
    patches = noise(rng, side, 6) + 1.2 * (distance - 0.8)
    sour = np.maximum(1 - sick / halo / 2, 0.5 + (patches - rng.uniform(0.9, 1.6)))  # a half is where yellowing begins
    label[(label == leaf) & (sour > 0.5)] = yellowing
    label[(distance < 1) & (sick < 0)] = spot
    blade = mixed(blade, yellow * np.exp(0.06 * wavy)[..., None], 0.5 + (sour - 0.5) * 2.2)
    dead = np.exp(0.10 * noise(rng, side, 0.8))[..., None] * mixed(brown, pale, (-sick - 1.8) * 0.45)
    blade = np.where((label == spot)[..., None], dead, blade)
    shine = 0.16 * (noise(rng, side, 7) - 0.9).clip(0)
    blade = blade * (1 + 0.12 * noise(rng, side, 12))[..., None] + shine[..., None]
    scene = np.where((distance < 1)[..., None], blade, scene)
    return photograph(rng, scene, 0.35, 0.7, 0.03), label


def lots(rng: np.random.Generator, u: np.ndarray, v: np.ndarray, width: float, crossing: float):
    """Houses in two rows on either side of a street along u: yields masks, coordinates -1 to 1 both ways, and sizes."""
    for row in (-1, 1):
        depth, setback = rng.uniform(13, 18), rng.uniform(2.5, 6)
        begin = u.min() - rng.uniform(0, 20)
        while begin < u.max():
            length, back = rng.uniform(13, 21), rng.uniform(0, 3)
            first = width / 2 + setback + back
            for near in (first, first + depth + setback + rng.uniform(9, 14)):
                long, deep = (u - begin) / length * 2 - 1, (row * v - near) / depth * 2 - 1
                within = (abs(long) < 1) & (abs(deep) < 1)
                free = begin > crossing + width / 2 + 2 or begin + length < crossing - width / 2 - 2
                if free and within.any():
                    yield within, long[within], row * deep[within], length, depth
            begin += length + rng.uniform(3, 9)


def roofs(rng: np.random.Generator, side: int) -> Drawn:
    roof, panel, street, garden = range(4)
    angle, sun = rng.uniform(0, np.pi), rng.uniform(0, 2 * np.pi)
    u, v = turned(side, angle, (side / 2, side / 2))
    v, width = v - rng.uniform(-16, 16), rng.uniform(9, 13)
    crossing = rng.uniform(-20, 20) if rng.random() < 0.3 else 4 * side
    tiles, patchy = noise(rng, side, 0.7), noise(rng, side, 4)
    colours = [[104, 128, 72], [150, 138, 108], [48, 72, 40], [118, 116, 114], [168, 162, 152]]
    lawn, dry, tree, asphalt, stone = tones(rng, colours, 0.10, 0.03)
    coverings = [[158, 84, 62], [112, 110, 112], [128, 98, 78], [84, 82, 86]]
    label = np.full((side, side), garden)
    scene = mixed(lawn * (1 + 0.07 * tiles)[..., None], dry, 0.45 * patchy)
    tall = np.zeros((side, side), bool)
    for within, long, deep, length, depth in lots(rng, u, v, width, crossing):
        lengthways = rng.random() < 0.7  # the ridge
        place, across, half = (long, deep, depth / 2) if lengthways else (deep, long, length / 2)
        facing = np.sin(sun - angle) if lengthways else np.cos(sun - angle)
        covering = tones(rng, [coverings[rng.integers(4)]], 0.10, 0.04)[0]
        tile = tiles[within]
        courses = 0.05 * np.sin(2 * np.pi * across * half / 3.1) + 0.06 * tile
        slopes = 0.22 * facing * np.sign(across) + 0.15 * (abs(across) * half < 0.8)
        label[within] = roof
        scene[within] = covering * (1 + courses + slopes)[:, None]
        tall |= within
        if rng.random() < 0.6:  # panels, on the side to the sun
            up = np.sign(facing) * across
            left, right = rng.uniform(-0.9, -0.2), rng.uniform(0.2, 0.9)
            glass = (up > 0.15) & (up < 0.88) & (place > left) & (place < right)
            frame = (np.sin(2 * np.pi * u[within] / 3.4) > 0.75) | (np.sin(2 * np.pi * v[within] / 4.3) > 0.8)
            silicon = tones(rng, [[44, 54, 92]], 0.12, 0.05)[0] * (1 + 0.08 * tile)[:, None]
            label[within] = np.where(glass, panel, roof)
            scene[within] = mixed(scene[within], mixed(silicon, np.array([0.55, 0.57, 0.6]), 0.45 * frame), glass * 1.0)
    off_road = np.minimum(abs(v), abs(u - crossing)) - width / 2
    paved = off_road < 0
    marks = (abs(v) < 0.6) & (u % 8 < 4)
    tar = asphalt * (1 + 0.05 * tiles + 0.05 * patchy)[..., None]
    tar = mixed(mixed(tar, stone, 0.8 * (off_road > -1.8)), np.array([0.85, 0.85, 0.82]), 0.7 * marks)
    label[paved] = street
    scene[paved] = tar[paved]
    for _ in range(rng.integers(0, 4)):
        lane, place = rng.choice([-1, 1]) * width * 0.25, rng.uniform(-side / 2, side / 2)
        paint = [[200, 200, 205], [40, 42, 48], [150, 40, 38], [60, 80, 130]][rng.integers(4)]
        scene[(abs(v - lane) < 1.5) & (abs(u - place) < 3.0)] = tones(rng, [paint], 0.1, 0.03)[0]
    ragged, foliage = noise(rng, side, 2), noise(rng, side, 0.8)
    for _ in range(rng.integers(2, 7)):
        centre, radius = rng.uniform(0, side, 2), rng.uniform(2.5, 5.5)
        crown = (ellipse(side, centre, radius) + 0.1 * ragged < 1) & (label == garden)
        lit = 0.25 * turned(side, sun, centre)[0] / radius
        scene[crown] = (tree * (1 + lit + 0.25 * foliage)[..., None])[crown]
        tall |= crown
    offset = -rng.uniform(2, 4) * np.array([np.sin(sun), np.cos(sun)])
    shade = np.any([np.roll(tall, np.rint(offset * part).astype(int), (0, 1)) for part in (0.5, 1)], axis=0)
    scene[shade & ~tall] *= rng.uniform(0.45, 0.65)
    return photograph(rng, scene, 0.15, 0.65, 0.025), label


def thin_sections(rng: np.random.Generator, side: int) -> Drawn:
    shares = np.array([0.36, 0.31, 0.18, 0.15])  # of the grains: quartz, feldspar, mica, opaque
    number = rng.integers(16, 34)
    kinds = rng.choice(4, number, p=rng.dirichlet(14 * shares))
    centres, angles = rng.uniform(-4, side + 4, (number, 2)), rng.uniform(0, np.pi, number)
    along, across = turned(side, angles[:, None, None], centres.T[..., None, None])
    length, width = (np.array(of_kind)[kinds, None, None] for of_kind in ([1, 1.35, 2, 0.7], [1, 1, 0.75, 0.7]))
    wobble = 1.1 * np.stack([noise(rng, side, 3.5), noise(rng, side, 3.5)])
    distances = np.hypot((along + wobble[0]) / length, (across + wobble[1]) / width)
    grain = distances.argmin(0)
    label = kinds[grain]
    across = np.take_along_axis(across, grain[None], 0)[0]
    waves, fine, speckle = noise(rng, side, 6), noise(rng, side, 0.7), noise(rng, side, 1.4)
    turn = rng.uniform(0, np.pi, number)[grain]  # against the polarisers
    grey = 0.18 + 0.62 * np.sin(turn + 0.22 * waves) ** 2  # undulous extinction
    quartz = (grey * (1 + 0.02 * fine))[..., None] * np.array([1.03, 1.0, 0.92])
    twins = np.tanh(3 * np.sin(2 * np.pi * across / rng.uniform(3.0, 5.5, number)[grain]))
    grey = 0.26 + 0.22 * np.sin(turn) ** 2 + (0.09 + 0.16 * abs(np.cos(turn))) * twins + 0.04 * speckle
    feldspar = grey.clip(0.08)[..., None] * np.array([0.98, 1.0, 1.02])
    hues = np.array([[196, 92, 128], [84, 150, 116], [206, 142, 62], [92, 104, 178], [142, 92, 54]])
    first, second = (tones(rng, hues[rng.integers(0, 5, number)], 0.16, 0.06)[grain] for _ in range(2))
    cleavage = 0.16 * np.sin(2 * np.pi * across / 3.0 + 0.6 * speckle)
    mica = mixed(first, second, 0.25 + 0.2 * speckle) * (1 + cleavage + 0.12 * fine)[..., None]
    opaque = 0.035 * (1 + 0.3 * speckle)[..., None] * np.ones(3)
    scene = np.take_along_axis(np.stack([quartz, feldspar, mica, opaque]), label[None, ..., None], 0)[0]
    nearest = np.partition(distances, 1, 0)
    seams = np.exp(-(((nearest[1] - nearest[0]) / 0.9) ** 2))
    scene = scene * (1 - rng.uniform(0.15, 0.5) * seams)[..., None]
    return photograph(rng, scene, 0.15, 0.6, 0.02), label


def thermal(rng: np.random.Generator, side: int) -> Drawn:
    sky, wall, window, tree, ground = range(5)
    y, x = grid(side)
    tilt = rng.normal(0, 0.03)
    rows, columns = y - tilt * x, x + tilt * y
    warm = noise(rng, side, 7)
    level = rng.uniform(46, 57)  # of the ground
    label = np.where(rows > level, ground, sky)
    degrees = rng.uniform(-15, -4) + 7 * (rows / level) ** 2 + 0.5 * warm
    earth = 5 + rng.normal(0, 1.5) + 0.05 * (rows - level) + 0.7 * noise(rng, side, (2, 6))
    degrees = np.where(rows > level, earth, degrees)
    left = rng.uniform(-25, 12)
    for _ in range(rng.integers(1, 3)):
        width, top = rng.uniform(30, 52), rng.uniform(2, 26)
        house = (columns > left) & (columns < left + width) & (rows > top) & (rows < level + 1)
        label[house] = wall
        facade = 9 + rng.normal(0, 1.5) + 1.2 * warm + 0.4 * noise(rng, side, (0.7, 2))
        storey, bay = rng.uniform(13, 17), rng.uniform(10, 14)
        floor, across = (rows - top - 2) % storey, (columns - left - 2) % bay
        facade = facade + 1.6 * np.exp(-((floor - 0.5) ** 2))  # the edge of the floor leaks
        tall, broad = rng.uniform(0.42, 0.6), rng.uniform(0.42, 0.62)
        pane = house & (floor > storey * (0.5 - tall / 2)) & (floor < storey * (0.5 + tall / 2))
        pane &= (across > bay * (0.5 - broad / 2)) & (across < bay * (0.5 + broad / 2))
        pane &= (rows < level - 3) & (columns < left + width - 2)
        # Each window has a temperature of its own, warm where it is open or lets heat through.
        number = ((rows - top - 2) // storey * 31 + (columns - left - 2) // bay).astype(int) % 97
        glass = np.where(rng.random(97) < 0.25, rng.uniform(13, 17), rng.uniform(-1, 3)) + rng.normal(0, 1.0, 97)
        below = house & (floor >= storey * (0.5 + tall / 2)) & (across > bay * 0.3) & (across < bay * 0.7)
        facade = facade + 2.5 * below * (rng.random(97) < 0.6)[number]  # radiators behind the wall
        frame = pane & (abs(across - bay / 2) < 0.6)
        facade = np.where(pane, glass[number] - 0.12 * (floor - storey / 2) + 2.5 * frame, facade)
        degrees = np.where(house, facade, degrees)
        label[pane] = window
        left += width + rng.uniform(3, 16)
    leafy = noise(rng, side, 1.1)
    for _ in range(rng.integers(0, 4)):
        size = rng.uniform(6, 13)
        centre = np.array([level + rng.uniform(0, 4) - size * rng.uniform(0.5, 1.3), rng.uniform(0, side)])
        crown = ellipse(side, centre, size, 1.15, np.pi / 2) + 0.14 * noise(rng, side, 2.5) < 1
        trunk = (abs(columns - centre[1]) < 1.2) & (rows > centre[0]) & (rows < level + 2)
        label[crown | trunk] = tree
        degrees = np.where(crown | trunk, 2.5 + rng.normal(0, 1.0) + 1.7 * leafy, degrees)
    low, high = np.quantile(degrees, [0.01, 0.99])  # the camera stretches what it sees
    grey = 0.06 + 0.82 * ((degrees - low) / (high - low)).clip(-0.05, 1.1)
    columns_of_sensor = 0.010 * rng.normal(size=(1, side))
    return photograph(rng, grey + columns_of_sensor, 0.08, 0.9, 0.024), label


def reef(rng: np.random.Generator, side: int) -> Drawn:
    water, sand, coral, algae = range(4)
    y = grid(side)[0]
    horizon = rng.uniform(0.05, 0.4) * side + 2.5 * noise(rng, side, 8)[0]
    label = np.where(y > horizon, sand, water)
    nearness = ((y - horizon) / (side - horizon)).clip(0, 1)
    pale, weed, blue = tones(rng, [[224, 210, 178], [92, 106, 48], [48, 126, 162]], 0.08, 0.05)
    slow, fine = noise(rng, side, 6), noise(rng, side, 0.7)
    ripples = np.sin(28 * np.pi * np.sqrt(nearness + 0.05) + 1.2 * slow)  # what is near is larger
    bed = pale * (1 + 0.09 * ripples + 0.05 * fine + 0.07 * slow)[..., None]
    scene = np.where((label == sand)[..., None], bed, blue)
    meadow = noise(rng, side, (4, 8)) + 0.25 * noise(rng, side, (2.5, 0.8)) > rng.uniform(0.2, 1.2)
    label[meadow & (label == sand)] = algae
    blades = noise(rng, side, (2.2, 0.6)) * 0.30 + 0.12 * noise(rng, side, 4)
    scene = np.where((label == algae)[..., None], weed * np.exp(blades)[..., None], scene)
    hues = [[186, 120, 122], [198, 162, 104], [134, 110, 152], [196, 132, 74], [160, 148, 118]]
    bumps, lumps = noise(rng, side, 1.5), noise(rng, side, 3)
    polyps = 0.22 * np.tanh(1.4 * bumps) + 0.10 * fine
    for place in sorted(rng.uniform(horizon.mean() / side, 1.05, rng.integers(2, 8))):  # the near ones hide the far
        size = (3.5 + 9 * max(place - horizon.mean() / side, 0)) * rng.uniform(0.8, 1.5)
        centre = np.array([place * side, rng.uniform(0, side)])
        distance = ellipse(side, centre, size, rng.uniform(1.1, 1.7)) + 0.10 * bumps + 0.12 * lumps
        colony = distance < 1
        shadow = (ellipse(side, (centre[0] + size * 0.55, centre[1] + 2), size, 1.6) < 1) & ~colony & (y > horizon)
        scene[shadow] *= 0.6
        round_off = 1.15 - 0.45 * distance.clip(0, 1) ** 2 - 0.25 * ((y - centre[0]) / size).clip(-1, 1)
        colour = tones(rng, [hues[rng.integers(5)]], 0.10, 0.05)[0]
        scene[colony] = (colour * (round_off + polyps)[..., None])[colony]
        label[colony] = coral
    web = np.exp(-((noise(rng, side, (2.0, 3.5)) / 0.35) ** 2))  # light that waves have gathered
    scene = scene * (0.9 + rng.uniform(0.05, 0.3) * web * nearness)[..., None]
    far = rng.uniform(0.5, 1.1) * (1.1 - nearness) + rng.uniform(0.05, 0.3)
    left = np.exp(-far[..., None] * np.array([1.1, 0.42, 0.34]))  # of the light: red goes first
    deep = blue * (1.15 - 0.3 * y / side)[..., None]
    scene = np.where((label == water)[..., None], deep, scene * left + deep * (1 - left) * 0.85)
    adrift = (rng.random((side, side)) < 0.0012) * rng.uniform(0.3, 0.9)  # specks before the lens
    scene += gaussian_filter(adrift, 0.7)[..., None]
    return photograph(rng, scene, 0.25, 0.75, 0.028), label


def welds(rng: np.random.Generator, side: int) -> Drawn:
    plate, tint, bead, flaw = range(4)
    angle = rng.normal(0, 0.15) + rng.choice([0, np.pi / 2])
    along, across = turned(side, angle, side / 2 + rng.normal(0, 5, 2))
    across = across + 0.7 * noise(rng, side, 8)
    half, zone = rng.uniform(7.5, 11.5), rng.uniform(6, 11)
    edge = abs(across) + 0.5 * noise(rng, side, 2)
    label = np.where(edge < half, bead, np.where(edge < half + zone, tint, plate))
    u, v = turned(side, rng.uniform(0, np.pi))  # along and across the brushing
    streaks = np.sin(2.1 * v + 2.4 * noise(rng, side, 5)) * 0.3 + noise(rng, side, 0.7)
    grey = 0.60 + 0.045 * streaks + 0.02 * noise(rng, side, 10)
    for _ in range(rng.poisson(1.5)):  # scratches
        line = np.exp(-((v - rng.uniform(v.min(), v.max())) ** 2)) * (abs(u - u.mean()) < rng.uniform(6, 27))
        grey += rng.choice([-0.15, 0.18]) * line
    # Heat leaves bands, dark where it was hottest.
    cooled = ((edge - half) / zone).clip(0, 1)
    burnt = grey - 0.27 * (1 - cooled) ** 0.7 + 0.07 * np.cos(2.2 * np.pi * cooled) + 0.03 * noise(rng, side, 1.5)
    profile = (across / half).clip(-1, 1)
    pitch, front = rng.uniform(3.6, 5.6), rng.choice([-1, 1])
    ripple = np.sin(2 * np.pi * (along + front * 4.5 * profile**2) / pitch + 0.5 * noise(rng, side, 3))
    slope = rng.uniform(-0.22, 0.22)
    gleam = np.exp(-(((profile - 1.6 * slope) / 0.22) ** 2)) * (0.6 + 0.4 * ripple)
    seam = 0.46 + slope * profile + 0.11 * ripple + 0.30 * gleam
    seam -= 0.16 * (abs(profile) > 0.88)  # the toes lie in shadow
    seam += 0.03 * noise(rng, side, 0.8)
    scene = pick([grey, burnt, seam], label)
    inside = np.argwhere((abs(profile) < 0.75) & (label == bead))
    for _ in range(rng.integers(0, 6)):
        place = inside[rng.integers(len(inside))]
        distance = ellipse(side, place, rng.uniform(1.7, 3.4), rng.uniform(1, 1.4), angle) + 0.08 * noise(rng, side, 1)
        scene = np.where((distance > 1) & (distance < 1.4) & (label == bead), scene + 0.12, scene)
        pore = (distance < 1) & (label == bead)
        scene[pore] = (0.07 + 0.10 * distance**2)[pore]
        label[pore] = flaw
    if rng.random() < 0.35:
        middle = along[tuple(inside[rng.integers(len(inside))])]
        path = rng.uniform(-0.4, 0.4) * half + 1.8 * noise(rng, side, 4)
        crack = (abs(across - path) < rng.uniform(0.9, 1.5)) & (abs(along - middle) < rng.uniform(8, 20))
        crack &= label == bead
        scene[crack] = 0.10
        label[crack] = flaw
    return photograph(rng, scene, 0.35, 0.6, 0.022), label


SCENES = (
    DrawnSet("fields", ("crop", "soil", "grass", "hedge", "track"), fields),
    DrawnSet("phase-contrast", ("medium", "spread cell", "rounded cell"), phase_contrast),
    DrawnSet("leaves", ("ground", "leaf", "yellowing", "spot"), leaves),
    DrawnSet("roofs", ("roof", "panel", "street", "garden"), roofs),
    DrawnSet("thin-sections", ("quartz", "feldspar", "mica", "opaque"), thin_sections),
    DrawnSet("thermal", ("sky", "wall", "window", "tree", "ground"), thermal),
    DrawnSet("reef", ("water", "sand", "coral", "algae"), reef),
    DrawnSet("welds", ("plate", "heat tint", "bead", "flaw"), welds),
)
