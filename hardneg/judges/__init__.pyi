from hardneg.judges.base import Judge as Judge
from hardneg.judges.base import JudgeOptions as JudgeOptions
from hardneg.judges.base import Verdicts as Verdicts
from hardneg.judges.base import make_judge as make_judge
from hardneg.judges.cross_encoder import CrossEncoderJudge as CrossEncoderJudge
from hardneg.judges.openai import OpenAIJudge as OpenAIJudge
