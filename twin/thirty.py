import sys
from PIL import Image, ImageDraw, ImageFont
from dalle_mini import device; device.set_up()
import dalle_mini
P = """a zebra under a rainbow; a dragon on a castle; an astronaut and a moon; a taxi left of a bus on a black background; three pumpkins on an orange background; a panda wearing a crown; a glossy guitar; a detailed shark; a ship below a cloud; coffee; a tree, a house, a car and a dog; two tigers; a giant dinosaur; a tiny spider on a white background; a princess between a prince and a dragon; a cat on a bed; a book and a key; a camera on a red background; a helicopter over a mountain; four strawberries on a pink background; a koala next to a palm tree; a clown in a hat; an umbrella in a glossy style; sushi; a smiley; a volcano on black; a pair of shoes; a snowman with a purple background; a violin and a trumpet; a bee, a butterfly and a ladybug""".split("; ")
assert len(P) == 30
pipe = dalle_mini.load(sys.argv[1]) if sys.argv[1] != "-" else dalle_mini.load()
font = ImageFont.load_default(13); tile, gap, text = 160, 10, 40; cols = 6
out = Image.new("RGB", (cols*(tile+gap)+gap, 5*(tile+text+gap)+gap), "white"); d = ImageDraw.Draw(out)
for i, p in enumerate(P):
    c = pipe.generate(p, seed=0)[0]; x, y = gap+(i % cols)*(tile+gap), gap+(i//cols)*(tile+text+gap)
    out.paste(c.image.convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS), (x, y))
    words, line, lines = p.split(), "", []
    for w in words:
        if d.textlength(f"{line} {w}".strip(), font) > tile: lines.append(line); line = w
        else: line = f"{line} {w}".strip()
    for k, l in enumerate([*lines, line]): d.text((x, y+tile+3+15*k), l, fill="black", font=font)
out.quantize(256, dither=Image.Dither.NONE).save(sys.argv[2], optimize=True); pipe.close()
