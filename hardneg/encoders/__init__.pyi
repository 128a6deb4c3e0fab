from hardneg.encoders.base import Encoder as Encoder
from hardneg.encoders.base import Fittable as Fittable
from hardneg.encoders.base import Trainable as Trainable
from hardneg.encoders.factory import EncoderOptions as EncoderOptions
from hardneg.encoders.factory import make_encoder as make_encoder
from hardneg.encoders.hashed import HashedEncoder as HashedEncoder
from hardneg.encoders.open_clip import OpenClipEncoder as OpenClipEncoder
from hardneg.encoders.sentence_transformers import SentenceTransformersEncoder as SentenceTransformersEncoder
