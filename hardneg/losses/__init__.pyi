from hardneg.losses.batch import PerRole as PerRole
from hardneg.losses.caching import cached_backward as cached_backward
from hardneg.losses.infonce import InfoNCE as InfoNCE
from hardneg.losses.logsumexp import LogitMask as LogitMask
from hardneg.losses.logsumexp import Tiles as Tiles
from hardneg.losses.logsumexp import row_logsumexp as row_logsumexp
from hardneg.losses.variants import Variants as Variants
