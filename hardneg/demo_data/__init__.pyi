from hardneg.demo_data.digits import write_digits as write_digits
from hardneg.demo_data.digits import write_small_clip as write_small_clip
from hardneg.demo_data.glyph_encoder import GlyphEncoder as GlyphEncoder
from hardneg.demo_data.glyphs import read_glyphs as read_glyphs
from hardneg.demo_data.pycode import read_pycode as read_pycode
