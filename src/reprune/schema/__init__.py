"""What a record, a claim, a row and the description of a paper are: every field, its kind and its limits, said once.

Whoever reads such a file reads it by `Record.read`, `Claim.read`, ...: a typed object, or a UserError of one line that
names the field, what is allowed and what was given. The same in JSON Schema, for others: results/record.schema.json.
"""

from reprune.schema.claim import Claim, Paper, Row
from reprune.schema.kinds import ENDS, GROUPS, SCHEMA, STAGES
from reprune.schema.record import Record

__all__ = ["ENDS", "GROUPS", "SCHEMA", "STAGES", "Claim", "Paper", "Record", "Row"]
