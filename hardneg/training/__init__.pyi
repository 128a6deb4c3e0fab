from hardneg.training.callbacks import Callback as Callback
from hardneg.training.callbacks import Watcher as Watcher
from hardneg.training.evaluation_set import EvaluationSet as EvaluationSet
from hardneg.training.options import TrainOptions as TrainOptions
from hardneg.training.self_supervised import two_views as two_views
from hardneg.training.towers import Towers as Towers
