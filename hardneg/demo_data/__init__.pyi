from hardneg.demo_data.glyph_encoder import GlyphEncoder as GlyphEncoder
from hardneg.demo_data.glyphs import read_glyphs as read_glyphs
from hardneg.demo_data.pycode import read_pycode as read_pycode
