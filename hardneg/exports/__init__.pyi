from hardneg.exports.export import EXPORT_FORMATS as EXPORT_FORMATS
from hardneg.exports.writers import Exported as Exported
