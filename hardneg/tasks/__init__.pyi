from hardneg.tasks.mine import mine_with as mine_with
from hardneg.tasks.mine import plan_run as plan_run
from hardneg.tasks.plan import Plan as Plan
from hardneg.tasks.worker import tasks_and_states as tasks_and_states
from hardneg.tasks.worker import work as work
