from hardneg.evaluation.ranking import parse_measures as parse_measures
from hardneg.evaluation.ranking import rank_measures as rank_measures
from hardneg.evaluation.retrieval import Evaluation as Evaluation
from hardneg.evaluation.retrieval import evaluate as evaluate
from hardneg.evaluation.retrieval import evaluate_vectors as evaluate_vectors
