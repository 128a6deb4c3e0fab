from hardneg.data.builder import Builder as Builder
from hardneg.data.options import ReadOptions as ReadOptions
from hardneg.data.pairs import Pairs as Pairs
from hardneg.data.pairs import open_pairs as open_pairs
from hardneg.data.pairs import save_pairs as save_pairs
from hardneg.data.picture import Picture as Picture
from hardneg.data.read import read_pairs as read_pairs
from hardneg.data.texts import Texts as Texts
