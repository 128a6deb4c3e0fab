from hardneg.integrations.examples import NegativeExamples as NegativeExamples
from hardneg.integrations.examples import collate as collate
from hardneg.integrations.negatives import HardNegatives as HardNegatives
