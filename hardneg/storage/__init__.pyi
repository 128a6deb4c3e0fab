from hardneg.storage.arrays import Ragged as Ragged
from hardneg.storage.arrays import Rows as Rows
from hardneg.storage.arrays import Sharded as Sharded
from hardneg.storage.vectors import EmbeddingStore as EmbeddingStore
