from hardneg.refresh.generation import Generation as Generation
from hardneg.refresh.generation import Recipe as Recipe
from hardneg.refresh.refreshed_index import RefreshedIndex as RefreshedIndex
from hardneg.refresh.refreshed_index import RefreshError as RefreshError
from hardneg.refresh.snapshot import ModuleSnapshots as ModuleSnapshots
from hardneg.refresh.snapshot import ProcessSnapshots as ProcessSnapshots
from hardneg.refresh.staleness import Schedule as Schedule
from hardneg.refresh.staleness import Staleness as Staleness
