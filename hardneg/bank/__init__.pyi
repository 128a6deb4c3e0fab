from hardneg.bank.curriculum import Curriculum as Curriculum
from hardneg.bank.examples import Example as Example
from hardneg.bank.examples import Examples as Examples
from hardneg.bank.hard_batches import HardBatches as HardBatches
from hardneg.bank.memory_bank import BankView as BankView
from hardneg.bank.memory_bank import MemoryBank as MemoryBank
from hardneg.bank.momentum import MomentumEncoder as MomentumEncoder
from hardneg.bank.sampler import MemoryBankSampler as MemoryBankSampler
