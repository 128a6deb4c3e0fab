from hardneg.losses.batch import PerRole as PerRole
from hardneg.losses.caching import cached_backward as cached_backward
from hardneg.losses.infonce import InfoNCE as InfoNCE
from hardneg.losses.masks import Mask as Mask
from hardneg.losses.tiles import Tiles as Tiles
from hardneg.losses.variants import Variants as Variants
